"""Stack: one block many times, its parameters stacked on a leading axis L."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.block import Block, Scene
from aigc_jax.layers.forms import are_plain

_P = jax.checkpoint_policies
# What the backward pass may keep of a layer; "none" means no rematerialisation.
REMAT = {
  "none": None,
  "full": _P.nothing_saveable,
  "dots": _P.dots_with_no_batch_dims_saveable,
  "all_dots": _P.dots_saveable,
}


def unstack(tree):
  """A list of trees, one for each index of the leading axis.

  Its gradient is one concatenation, where slicing alone would give a padded
  sum for each layer.
  """
  return _slices(tree) if are_plain() else _unstack(tree)


def _slices(tree):
  length = jax.tree.leaves(tree)[0].shape[0]
  return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(length)]


_unstack = jax.custom_vjp(_slices)


def _unstack_forward(tree):
  return _slices(tree), None


def _unstack_backward(_, parts):
  return (jax.tree.map(lambda *a: jnp.stack(a), *parts),)


_unstack.defvjp(_unstack_forward, _unstack_backward)


@struct.dataclass
class Layer:
  """What differs from layer to layer: a leaf each, with a leading axis L."""

  params: dict
  key: jax.Array | None
  cache: Cache | None
  window: jax.Array | None


class Stack(nn.Module):
  """`layers` blocks in a row; the parameters of all have a leading axis L.

  unroll: how many layers one trip of the loop holds; 0 means all, no loop.
  windows: a pattern of attention windows repeated over the layers, None for a
  layer that sees everything; () for no window at all.
  Whatever the two say, parameters have one layout and results are the same.
  """

  layers: int
  block: Callable[[], Block]
  windows: tuple[int | None, ...] = ()
  remat: str = "none"
  unroll: int = 1

  def __post_init__(self):
    if not 0 <= self.unroll <= self.layers:
      raise errors.BadConfig(
        f"model.unroll={self.unroll}: expected 0 (all) to {self.layers} layers"
      )
    errors.choose(self.remat, REMAT, "model.remat")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, scene: Scene, caches: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    """(B, T, D) and, where given, the caches with their leading axis L."""
    block = self.block(parent=None)
    params = self._params(block, x_BTD, scene)
    if self.is_initializing():  # drawn; what comes after asks for a shape only
      return x_BTD, caches
    dropping = self.has_rng("dropout")
    keys = None
    if dropping:
      keys = jax.random.split(self.make_rng("dropout"), self.layers)
    pattern = [
      self.windows[i % len(self.windows)] if self.windows else None
      for i in range(self.layers)
    ]

    def apply(x, layer, window):
      rngs = {} if layer.key is None else {"dropout": layer.key}
      seen = _windowed(scene, window)
      return block.apply(
        {"params": layer.params}, x, seen, layer.cache, rngs=rngs
      )

    if self.unroll == 0 or self.unroll == self.layers:
      each = unstack(params)
      news = []
      for i, window in enumerate(pattern):
        at = lambda tree, i=i: jax.tree.map(lambda a: a[i], tree)  # noqa: E731
        layer = Layer(each[i], at(keys), at(caches), None)
        run = self._rematted(lambda x, l, w=window: apply(x, l, w))  # noqa: E741
        x_BTD, new = run(x_BTD, layer)
        news.append(new)
      if caches is not None:
        caches = jax.tree.map(lambda *a: jnp.stack(a), *news)
      return x_BTD, caches

    varied = len(set(pattern)) > 1
    windows = jnp.array([w or 0 for w in pattern]) if varied else None

    def body(x, layer):
      window = layer.window if varied else pattern[0]
      return self._rematted(lambda x, l: apply(x, l, window))(x, layer)  # noqa: E741

    return jax.lax.scan(
      body, x_BTD, Layer(params, keys, caches, windows), unroll=self.unroll
    )

  def _params(self, block: Block, x_BTD, scene) -> dict:
    """The blocks' parameters, directly below this module's name."""
    if self.is_initializing():
      fresh = _stacked(
        block, self.layers, self.make_rng("params"), x_BTD, scene
      )
      for name, value in fresh.items():
        self.param(name, lambda _, value=value: value)
    return nn.unbox(dict(self.variables["params"]))

  def _rematted(self, run):
    if self.remat == "none":
      return run
    return jax.checkpoint(run, policy=REMAT[self.remat], prevent_cse=False)


def _stacked(block: Block, layers: int, key, x_BTD, scene: Scene) -> dict:
  """Fresh parameters of all the blocks, each block drawn with its own key."""

  def one(key):
    return block.init(key, x_BTD, scene)["params"]

  def name(box):
    return box.replace(names=("L", *box.names))

  boxed = jax.vmap(one)(jax.random.split(key, layers))
  return jax.tree.map(
    name, boxed, is_leaf=lambda b: isinstance(b, nn.LogicallyPartitioned)
  )


def _windowed(scene: Scene, window) -> Scene:
  """The scene as a layer with this window sees it; 0 or None is no window."""
  if window is None:
    return scene
  visible = dataclasses.replace(scene.visible, window=window)
  turn = scene.turn
  if scene.local_turn is not None:
    local = (jnp.asarray(window) > 0) if not isinstance(window, int) else True
    turn = jax.tree.map(
      lambda a, b: a if local is True else jnp.where(local, a, b),
      scene.local_turn, scene.turn,
    )  # fmt: skip
  return dataclasses.replace(scene, visible=visible, turn=turn)
