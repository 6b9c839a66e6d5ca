"""Stack: one block many times, its parameters stacked on a leading axis L."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.block import Block, Caches, Scene
from aigc_jax.layers.forms import are_counted, are_plain
from aigc_jax.layers.report import (
  REPORTS,
  STATS,
  of_layers,
  report,
  reporting,
)

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
  stats: dict
  key: jax.Array | None
  cache: Cache | Caches | None


class Stack(nn.Module):
  """`layers` blocks in a row; the parameters of all have a leading axis L.

  unroll: how many layers one trip of the loop holds; 0 means all, no loop.
  windows: a pattern of attention windows repeated over the layers, None for a
  layer that sees everything; () for no window at all.
  rotary: a pattern as well, False for a layer whose queries and keys are not
  turned; () for all turned.
  A trip of the loop holds whole patterns, so that the window of each layer is
  known to its kernel. However many layers it holds, parameters have one layout
  and results are the same. What blocks report, and stats that this moves, have
  the leading axis too.
  """

  layers: int
  block: Callable[[], Block]
  windows: tuple[int | None, ...] = ()
  remat: str = "none"
  unroll: int = 1
  rotary: tuple[bool, ...] = ()

  def __post_init__(self):
    if not 0 <= self.unroll <= self.layers:
      raise errors.BadConfig(
        f"compute.unroll={self.unroll}: expected None (all) or 1 to "
        f"{self.layers} layers"
      )
    errors.choose(self.remat, REMAT, "compute.remat")
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    scene: Scene,
    caches: Cache | Caches | None = None,
  ) -> tuple[jax.Array, Cache | Caches | None]:
    """(B, T, D) and, where given, the caches with their leading axis L."""
    block = self.block(parent=None)
    params, stats = self._variables(block, x_BTD, scene)
    if self.is_initializing():  # drawn; what comes after asks for a shape only
      return x_BTD, caches
    keys = None
    if self.has_rng("dropout"):
      keys = jax.random.split(self.make_rng("dropout"), self.layers)
    pattern = _joined(self.windows or (None,), self.rotary or (True,))

    def apply(x, layer, window, turned):
      rngs = {} if layer.key is None else {"dropout": layer.key}
      seen = _windowed(scene, window)
      if not turned:
        seen = dataclasses.replace(seen, turn=None)
      variables = {"params": layer.params, STATS: layer.stats}
      if not reporting(self):
        x, cache = block.apply(variables, x, seen, layer.cache, rngs=rngs)
        return x, (cache, {})
      (x, cache), told = block.apply(
        variables, x, seen, layer.cache, rngs=rngs, mutable=[REPORTS]
      )
      return x, (cache, told.get(REPORTS, {}))

    def in_turn(x, layers: list[Layer]):
      """Some layers from the pattern's first on; their news as a list."""
      news = []
      for layer, (window, turned) in zip(
        layers, itertools.cycle(pattern), strict=False
      ):
        run = self._rematted(
          functools.partial(apply, window=window, turned=turned)
        )
        x, new = run(x, layer)
        news.append(new)
      return x, news

    # Layers that are only counted are traced once for each of the pattern.
    unrolled = self.unroll in (0, self.layers) and not are_counted()
    if unrolled:
      each = [
        Layer(p, *_at((stats, keys, caches), i))
        for i, p in enumerate(unstack(params))
      ]
      x_BTD, news = in_turn(x_BTD, each)
      return x_BTD, self._told(_stack(news))

    P = min(len(pattern), self.layers)
    whole = self.layers - self.layers % P
    every = Layer(params, stats, keys, caches)
    x_BTD, news = jax.lax.scan(
      lambda x, group: _stacked_news(in_turn(x, _members(group, P))),
      x_BTD,
      _in_groups(every, whole, P),
      unroll=max(1, self.unroll // P),
    )
    if P > 1:
      news = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), news)
    if whole == self.layers:
      return x_BTD, self._told(news)
    rest = [_at(every, i) for i in range(whole, self.layers)]
    x_BTD, last = in_turn(x_BTD, rest)
    join = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return x_BTD, self._told(jax.tree.map(join, news, _stack(last)))

  def remember(self, memory_BSD: jax.Array) -> Cache:
    """Keys and values that the cross attention of each layer reads, from L."""
    attention = self.block(parent=None).cross(parent=None)
    params = nn.unbox(dict(self.variables["params"]["cross_attention"]))

    def one(params):
      return attention.apply({"params": params}, memory_BSD, method="remember")

    return jax.lax.map(one, params)

  def _told(self, news: tuple) -> Cache | Caches | None:
    """Reports what the blocks did, of all layers; their caches."""
    caches, reports = news
    for name, value in reports.items():
      report(self, name, of_layers(value))
    return caches

  def _variables(self, block: Block, x_BTD, scene) -> tuple[dict, dict]:
    """The blocks' parameters and stats, directly below this module's name."""
    if self.is_initializing():
      fresh = _stacked(
        block, self.layers, self.make_rng("params"), x_BTD, scene
      )
      for name, value in fresh["params"].items():
        self.param(name, lambda _, value=value: value)
      for name, value in fresh.get(STATS, {}).items():
        self.variable(STATS, name, lambda value=value: value)
    found = self.variables
    return nn.unbox(dict(found["params"])), nn.unbox(dict(found.get(STATS, {})))

  def _rematted(self, run):
    if self.remat == "none" or are_counted():
      return run
    return jax.checkpoint(run, policy=REMAT[self.remat], prevent_cse=False)


def _stacked(block: Block, layers: int, key, x_BTD, scene: Scene) -> dict:
  """Fresh variables of all the blocks, each block drawn with its own key."""

  def one(key):
    found = block.init(key, x_BTD, scene)
    return {name: found[name] for name in ("params", STATS) if name in found}

  def name(box):
    return box.replace(names=("L", *box.names))

  boxed = jax.vmap(one)(jax.random.split(key, layers))
  return jax.tree.map(
    name, boxed, is_leaf=lambda b: isinstance(b, nn.LogicallyPartitioned)
  )


def _joined(*patterns: tuple) -> list[tuple]:
  """Patterns side by side, as one that is as long as they need together."""
  length = math.lcm(*(len(p) for p in patterns))
  return [tuple(p[i % len(p)] for p in patterns) for i in range(length)]


def _at(tree, i: int):
  """Entry i of the leading axis of each leaf."""
  return jax.tree.map(lambda a: a[i], tree)


def _stack(news: list):
  """What single layers give, with a leading axis L."""
  return jax.tree.map(lambda *a: jnp.stack(a), *news)


def _in_groups(every: Layer, whole: int, P: int) -> Layer:
  """The first `whole` layers, P neighbours at a time: (L/P, P, ...)."""
  if P == 1:
    return every
  return jax.tree.map(
    lambda a: a[:whole].reshape(whole // P, P, *a.shape[1:]), every
  )


def _members(group: Layer, P: int) -> list[Layer]:
  return [group] if P == 1 else [_at(group, i) for i in range(P)]


def _stacked_news(found: tuple[jax.Array, list]):
  x, news = found
  return x, news[0] if len(news) == 1 else _stack(news)


def _windowed(scene: Scene, window: int | None) -> Scene:
  """The scene as a layer with this window sees it; None is no window."""
  if window is None:
    return scene
  visible = dataclasses.replace(scene.visible, window=window)
  turn = scene.turn if scene.local_turn is None else scene.local_turn
  return dataclasses.replace(scene, visible=visible, turn=turn)
