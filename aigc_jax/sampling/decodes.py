"""What decoding asks of a model, whatever its family, and how it is called.

A model `Decodes` where it makes tokens one after another from a cache. Some
read a prompt as a source of its own, from which a target is written after a
start token (`source`); the others go on where the prompt ends.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.errors import BadConfig
from aigc_jax.layers.block import Caches
from aigc_jax.layers.readout import Readout


@runtime_checkable
class Decodes(Protocol):
  """A flax module that makes tokens one after another.

  vocab: how many tokens there are. dtype: of its cache. source: whether a
  prompt is read apart from what is written.
  """

  vocab: int
  dtype: jnp.dtype
  source: bool

  def begin(self, batch, length: int) -> tree.Tree:
    """A cache for up to `length` positions of each row of a batch of prompts.

    Encoders run here. Leaves have a leading axis L of layers, then rows.
    """

  def next(
    self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: tree.Tree
  ) -> tuple[Readout, tree.Tree]:
    """Predictions of what follows tokens at positions, which the cache gets.

    positions: consecutive in each row, (B, T), or (1, T) for all rows alike.
    """


@runtime_checkable
class Hears(Protocol):
  """A model whose prompts are sound: 16-bit samples in the place of tokens.

  samples: how many it hears at most.
  """

  samples: int

  def heard(self, tokens_UP: jax.Array, lengths_U: jax.Array) -> dict:
    """The batch of prompts (U, P) that are samples."""


def check_decodes(model: nn.Module, what: str) -> None:
  """BadConfig unless the model decodes; `what` is what needs it."""
  if not isinstance(model, Decodes):
    raise BadConfig(
      f"{what} makes tokens one after another, which a model of the kind "
      f"{type(model).__name__} does not: leave it out, or take a decoder or an "
      "encoder_decoder"
    )


class Forward:
  """Calls of a model for decoding, to be traced.

  unrolled: whether the model was built with unroll=None. Then each layer's
  parameters and cache are arrays of their own, which saves copying them at
  each token. start: the token that targets are written after, of a model with
  a `source`.
  """

  def __init__(self, model: nn.Module, unrolled: bool, start: int | None):
    check_decodes(model, "decoding")
    if model.source and start is None:
      raise BadConfig("decoding from a source needs the token to start with")
    self.model, self.unrolled, self.start = model, unrolled, start

  def ready(self, params: tree.Tree) -> tree.Tree:
    """Matrices in the model's dtype, once; layers apart, where unrolled."""
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: (
        x.astype(self.model.dtype)
        if tree.match(("*/w", "*/table"), tree.name_of(path))
        else x
      ),
      nn.unbox(params),
    )
    return self._of_stacks(self.apart, params)

  def _of_stacks(self, f, params):
    """Parameters with f of each stack in them."""
    return {
      name: f(part)
      if name == "stack"
      else self._of_stacks(f, part)
      if isinstance(part, dict)
      else part
      for name, part in params.items()
    }

  def apart(self, stacked):
    """A tuple over the layers, where they are unrolled."""
    if not self.unrolled:
      return stacked
    layers = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(
      jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(layers)
    )

  def _joined(self, parts):
    """What `apart` took apart. The model slices it again; XLA sees through."""
    if not self.unrolled:
      return parts
    return jax.tree.map(lambda *a: jnp.stack(a), *parts)

  def begin(self, params, tokens_UP, lengths_U, length: int):
    """Reads prompts, right-padded; what is then given to `next`.

    Returns (cache for `length` positions, tokens_UT, lengths_U): the prompts
    themselves, or of a model with a source the token that targets start with.
    """
    U, P = tokens_UP.shape
    batch = {"tokens": tokens_UP}
    if isinstance(self.model, Hears):
      batch = self.model.heard(tokens_UP, lengths_U)
    elif self.model.source:
      real_UP = jnp.arange(P) < lengths_U[:, None]
      batch = {
        "encoder_tokens": tokens_UP,
        "encoder_segments": real_UP.astype(jnp.int32),
      }
    if self.model.source:
      tokens_UP = jnp.full((U, 1), self.start, jnp.int32)
      lengths_U = jnp.ones_like(lengths_U)
    cache = self._apply(params, batch, length, method="begin")
    return self.apart(cache), tokens_UP, lengths_U

  def next(self, params, tokens_BT, positions_BT, cache):
    """(Readout, cache), as `Decodes.next`."""
    readout, cache = self._apply(
      params, tokens_BT, positions_BT, self._joined(cache), method="next"
    )
    return readout, self.apart(cache)

  def _apply(self, params, *args, method: str):
    params = self._of_stacks(self._joined, params)
    return self.model.apply({"params": params}, *args, method=method)

  def first(self, params, tokens_UP, lengths_U, length: int):
    """Logits (U, V) of what follows prompts, and what led to them.

    Returns (logits, cache, tokens_UT, lengths_U).
    """
    cache, tokens_UT, lengths_U = self.begin(
      params, tokens_UP, lengths_U, length
    )
    positions_1T = jnp.arange(tokens_UT.shape[1], dtype=jnp.int32)[None]
    readout, cache = self.next(params, tokens_UT, positions_1T, cache)
    last_U11 = lengths_U[:, None, None] - 1
    last_U1D = jnp.take_along_axis(readout.features_BTD, last_U11, axis=1)
    logits_UV = readout.replace(features_BTD=last_U1D).logits()[:, 0]
    return logits_UV, cache, tokens_UT, lengths_U

  def rows(self, cache, index_B: jax.Array, memory: bool = True):
    """The cache of these rows; without `memory`, of what was written alone.

    That serves where rows of one source change places.
    """
    axis = 0 if self.unrolled else 1

    def one(part):
      return jax.tree.map(lambda a: jnp.take(a, index_B, axis), part)

    def of_layers(part):
      if isinstance(part, Caches) and not memory:
        return part.replace(own=one(part.own))
      return one(part)

    if isinstance(cache, tuple):
      return tuple(of_layers(part) for part in cache)
    return of_layers(cache)

  def positions_of(self, prompt: int, max_tokens: int) -> int:
    """How many a row needs that goes on for so many tokens."""
    return (1 if self.model.source else prompt) + max_tokens

  def check(self, prompt: int, max_tokens: int, positions: int) -> None:
    """Raises BadConfig unless a prompt of that many tokens can be continued.

    positions: how many the model has, 0 for no limit. A source takes none.
    """
    if max_tokens < 1:
      raise BadConfig(f"max_tokens={max_tokens}: expected at least 1")
    if prompt < 1:
      raise BadConfig("an empty prompt has no token to start from")
    needed = self.positions_of(prompt, max_tokens)
    if not positions or needed <= positions:
      return
    before = needed - max_tokens
    what = "the start token" if self.model.source else f"{before} of prompt"
    fits = positions - before
    way = f"max_tokens={fits} fits" if fits > 0 else "shorten the prompt"
    raise BadConfig(
      f"{what} and max_tokens={max_tokens} make {needed} tokens; the model has "
      f"{positions} positions ({way})"
    )
