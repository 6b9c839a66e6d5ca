"""Whether two sections `model` are of one model, and where they differ."""

import shlex
from collections.abc import Mapping

from aigc_jax.errors import BadConfig, choose
from aigc_jax.hf import kinds
from aigc_jax.hf.settings import FREE
from aigc_jax.models import MODELS
from aigc_jax.run import compute
from aigc_jax.signature import check_types, keys_of

# Sizes that are divided by, or counted to, when two models are compared.
SIZES = {"layers": 10_000, "dim": 2**31 - 1, "heads": 2**31 - 1}


def _check_model(model: Mapping) -> None:
  """Raises BadConfig for a value of another type than its key has.

  It may lack keys, and have some that there are no more.
  """
  kind = model.get("kind", "decoder")
  keys = keys_of(choose(kind, MODELS, "model.kind"))
  known = {name: keys[name].annotation for name in model.keys() & keys.keys()}
  check_types("model", model, known)
  for name, most in SIZES.items():
    if name in known and not 1 <= model[name] <= most:
      raise BadConfig(f"model.{name}={model[name]}: expected 1 to {most}")


def differing(model: Mapping, theirs: Mapping) -> dict:
  """{key: their value} of config.model where they are two models.

  Of a value that follows from others, only those others. How either is
  computed does not make it another.
  """
  model, theirs = compute.bare(model), compute.bare(theirs)
  for one in (model, theirs):
    _check_model(one)
  both = {m.get("kind", "decoder") for m in (model, theirs)}
  kind = theirs.get("kind", "decoder")
  before = kinds.defaults(kind) if len(both) == 1 else {}
  model = {**before, **model}
  theirs = {**model, **before, **theirs}
  if len(both) > 1:
    ours, asked, theirs = model, {"kind": kind}, {"kind": kind}
  elif kind in kinds.KINDS:
    ours, asked = (kinds.canonical(kind, m) for m in (model, theirs))
  else:
    ours, asked = model, {k: v for k, v in theirs.items() if k not in FREE}
  return {
    key: theirs[key]
    for key, value in asked.items()
    if (key not in ours or ours[key] != value)
    and (key not in model or not _same(key, model[key], theirs[key]))
  }


def _same(key: str, ours, theirs) -> bool:
  """Whether two values of a key are one; each part is a model of its own."""
  parted = all(isinstance(v, Mapping) for v in (ours, theirs))
  if key != "parts" or not parted or ours.keys() != theirs.keys():
    return _plain(ours) == _plain(theirs)
  return not any(differing(ours[name], theirs[name]) for name in ours)


def differences(
  model: Mapping, theirs: Mapping, section: str = "model"
) -> list[str]:
  """A line for each key of a model's section that makes it another model."""
  lines = []
  for key, new in differing(model, theirs).items():
    if isinstance(new, list | tuple):
      new = tuple(new)
    own = f"{section}.{key}={model.get(key)!r}"
    way = _flag(section, key, new)
    lines.append(f"{own}, there it is {new!r}: {way}")
  return lines


def flags_of(model: Mapping, theirs: Mapping) -> list[str]:
  """What a command line says to make config.model theirs."""
  return [_flag("model", *item) for item in differing(model, theirs).items()]


def _flag(section: str, key: str, value) -> str:
  if isinstance(value, list):
    value = tuple(value)
  return f"--config.{section}.{key}={shlex.quote(str(value))}"


def _plain(value):
  """Tuples and lists are one: a config file has but lists."""
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return value
