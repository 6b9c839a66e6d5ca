"""Parts that start as copies of others: a student as every second layer."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from aigc_jax import tree
from aigc_jax.errors import BadConfig
from aigc_jax.run.settings import Config
from aigc_jax.signature import check_types, expect
from aigc_jax.trainer.state import State

# Of an entry of config.init_parts.
KEYS = {"part": str, "layers": list | tuple | None}


def below(whole: tree.Tree, part: str) -> tree.Tree:
  """What lies below a path, such as "student" or "stack/mlp".

  Raises BadConfig where there is nothing.
  """
  for key in part.split("/"):
    if not isinstance(whole, Mapping) or key not in whole:
      raise BadConfig(f"the model has no part {part!r}")
    whole = whole[key]
  return whole


def nested(part: str, values: tree.Tree) -> tree.Tree:
  """A tree in which these values lie below a path."""
  for key in reversed(part.split("/")):
    values = {key: values}
  return values


def check_parts(config: Config, params: tree.Tree) -> None:
  """Raises BadConfig for entries of init_parts that cannot be done.

  params: abstract, of all parts.
  """
  for name, entry in config["init_parts"].items():
    where = f"init_parts.{name}"
    if not isinstance(entry, Mapping):
      raise BadConfig(f"{where}={entry!r}: expected dict(part=..., layers=...)")
    expect(where, entry, KEYS)
    check_types(where, entry, KEYS)
    _copied(where, below(params, name), below(params, entry["part"]), entry)


def with_parts(config: Config, state: State) -> State:
  """The state whose parts named by init_parts are copies; the average too."""
  if not config["init_parts"]:
    return state
  params, whole = state.params, tree.joined(state.params, state.frozen)
  for name, entry in config["init_parts"].items():
    own, theirs = below(params, name), below(whole, entry["part"])
    made = jax.jit(
      lambda own, theirs, name=name, entry=entry: _copied(
        f"init_parts.{name}", own, theirs, entry
      ),
      out_shardings=jax.tree.map(lambda x: x.sharding, own),
    )(own, theirs)
    apart, _ = tree.split(params, [name])
    params = tree.joined(apart, nested(name, made))
  return state.replace(params=params).started()


def _copied(where: str, own: tree.Tree, theirs: tree.Tree, entry: Mapping):
  """Each leaf of `own` as it is in `theirs`, of stacked ones some layers."""
  known, layers = tree.flat(theirs), entry["layers"]

  def one(path, x):
    name = tree.name_of(path)
    if name not in known:
      raise BadConfig(f"{where}: {entry['part']} has no {name}")
    y = known[name]
    some = layers is not None and "stack" in name.split("/")
    if some:
      if not all(0 <= i < y.shape[0] for i in layers):
        raise BadConfig(f"{where}.layers={layers}: there are {y.shape[0]}")
      shape = (len(layers), *y.shape[1:])
    else:
      shape = y.shape
    if shape != x.shape:
      raise BadConfig(
        f"{where}: {name} is {x.shape}, and what it starts from is {shape}"
      )
    if isinstance(x, jax.ShapeDtypeStruct):
      return x
    return (y[jnp.asarray(layers)] if some else y).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(one, own)
