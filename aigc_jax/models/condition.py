"""What an image is to be, and how far it is from noise, as a model is told it.

A time, and beside it a label or a caption, or neither. A caption is read by a
transformer that is trained with the rest, or another model has read it: its
tokens are what cross attention reads, their mean is a part of the condition.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.mlp import Mlp, activate
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.position import LearnedPositions, for_rows
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1

Batch = Mapping[str, jax.Array]
WAVES = 256  # that a time is written in
LONGEST = 10_000.0  # over the shortest of them
TIMES = 1000.0  # in which published models count what is 0 to 1 here


def waves_of(time_B: jax.Array, waves: int = WAVES) -> jax.Array:
  """Cosines, then sines, of a time from 0 to 1: (B, waves) float32."""
  half = waves // 2
  rates = jnp.exp(-math.log(LONGEST) * jnp.arange(half) / half)
  radians = TIMES * time_B.astype(jnp.float32)[:, None] * rates
  return jnp.concatenate([jnp.cos(radians), jnp.sin(radians)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Asked:
  """condition_BD: of adaptive layers. memory_BSD: the caption, if any.

  real_BS: 1 where it has a token, 0 behind its end.
  """

  condition_BD: jax.Array
  memory_BSD: jax.Array | None = None
  real_BS: jax.Array | None = None

  def visible(self, T: int) -> Visible | None:
    """That each of T places reads all of the caption and nothing behind it."""
    if self.real_BS is None:
      return None
    ones_BT = jnp.ones((len(self.real_BS), T), self.real_BS.dtype)
    return Visible(causal=False, segments_BT=ones_BT, segments_BS=self.real_BS)


def until_end(tokens_BS: jax.Array, end: int) -> jax.Array:
  """(B, S) bool: the tokens of captions, the first id `end` included."""
  ends_BS = (tokens_BS == end).astype(jnp.int32)
  return jnp.cumsum(ends_BS, axis=1) - ends_BS == 0


def real_of(tokens_BS: jax.Array, end: int) -> tuple[jax.Array, jax.Array]:
  """(which captions are none (B, 1), which tokens are read (B, S)).

  Of none, an id below 0 at its beginning, the first token alone.
  """
  none_B1 = tokens_BS[:, :1] < 0
  first_1S = jnp.arange(tokens_BS.shape[1])[None] == 0
  real_BS = jnp.where(none_B1, first_1S, until_end(tokens_BS, end))
  return none_B1, real_BS.astype(jnp.int32)


class Reader(nn.Module):
  """Captions "tokens" (B, S) as vectors (B, S, D), and which are real, (B, S).

  A caption ends with the first id `end`; what stands behind it is never seen.
  An id below 0 at its beginning says that there is none, which is read as one
  token more, alone.
  """

  vocab: int
  embed: Callable[..., Embed]
  position: Callable[..., LearnedPositions]
  stack: Callable[..., Stack]
  norm: NormFactory
  end: int

  @nn.compact
  def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    tokens_BS = batch["tokens"]
    B, S = tokens_BS.shape
    none_B1, real_BS = real_of(tokens_BS, self.end)
    at_1S = jnp.arange(S, dtype=jnp.int32)[None]
    ids_BS = jnp.where(none_B1, self.vocab, tokens_BS)
    x_BSD, _ = self.embed(name="embed")(ids_BS)
    place_1SD = self.position(name="position")(at_1S, fixed=True)
    x_BSD = x_BSD + for_rows(place_1SD, B)
    visible = Visible(causal=False, segments_BT=real_BS, segments_BS=real_BS)
    x_BSD, _ = self.stack(name="stack")(x_BSD, Scene(visible))
    return self.norm(name="norm")(x_BSD), real_BS


class Features(nn.Module):
  """Captions that another model has read, "text" (B, S, D), as a Reader's.

  Normalised; "tokens" (B, S) say which of them are real, and where there is no
  caption, which is a learned vector.
  """

  none: Callable[..., Embed]
  norm: NormFactory
  end: int

  @nn.compact
  def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    none_B1, real_BS = real_of(batch["tokens"], self.end)
    none_11D, _ = self.none(name="embed_none")(jnp.zeros((1, 1), jnp.int32))
    text_BSD = batch["text"].astype(none_11D.dtype)
    x_BSD = jnp.where(none_B1[..., None], none_11D, text_BSD)
    return self.norm(name="norm")(x_BSD), real_BS


class Condition(nn.Module):
  """What is `Asked` for by the time, label or tokens of a batch.

  The vector has `dim` numbers. classes: how many labels there are, from there
  on it is none of them; 0 for a model that is told none. reader: of captions.
  """

  classes: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  products: str = "plain"
  waves: int = WAVES
  reader: Callable[..., Reader | Features] | None = None

  @nn.compact
  def __call__(self, batch: Batch) -> Asked:
    D = self.dim
    keys = dict(
      dtype=self.dtype, bias=True, std=self.std, products=self.products
    )
    up = Einsum("BC,CF->BF", (self.waves, D), name="time_up", **keys)
    down = Einsum("BF,FD->BD", (D, D), name="time_down", **keys)
    waves = waves_of(batch["time"], self.waves)
    found_BD = down(activate("silu", up(waves)))
    if self.classes:
      embed = Embed(
        self.classes + 1, D, self.dtype, self.std, name="embed_label"
      )
      labels_B = jnp.minimum(batch["labels"], self.classes)
      found_BD = found_BD + embed(labels_B[:, None])[0][:, 0]
    memory_BSD = real_BS = None
    if self.reader is not None:
      memory_BSD, real_BS = self.reader(name="reader")(batch)
      mean_BD = _mean(memory_BSD, real_BS)
      found_BD = found_BD + Einsum(
        "BC,CD->BD", (memory_BSD.shape[-1], D), name="caption", **keys
      )(mean_BD)
    return Asked(sharding.constrain(found_BD, "BD"), memory_BSD, real_BS)


def _mean(x_BSD: jax.Array, real_BS: jax.Array) -> jax.Array:
  """Over the tokens of a caption, in float32."""
  x = x_BSD.astype(jnp.float32) * real_BS[..., None]
  return jnp.sum(x, axis=1) / jnp.sum(real_BS, axis=1, keepdims=True)


def reader(
  *,
  classes: int,
  vocab: int | None,
  text_length: int | None,
  text_layers: int | None,
  text_dim: int | None,
  text_heads: int | None,
  text_mlp_dim: int | None,
  text_end: int | None,
  norm_eps: float,
  dtype: jnp.dtype,
  std: float,
  dropout: float,
  remat: str,
  kernel: str,
  fused: bool,
) -> Callable[..., Reader | Features] | None:
  """A Reader of a model whose keys these are; None without a `vocab`.

  With text_layers=0 what takes the Features of another model.

  Raises BadConfig where they cannot go together.
  """
  own = dict(
    text_length=text_length, text_layers=text_layers, text_dim=text_dim,
    text_heads=text_heads,
  )  # fmt: skip
  if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
    raise errors.BadConfig(f"model.classes={classes!r}: expected 0 or more")
  if vocab is None:
    of_text = own | dict(text_end=text_end, text_mlp_dim=text_mlp_dim)
    for name, value in of_text.items():
      if value is not None:
        raise errors.BadConfig(
          f"model.{name}={value} is of a model that reads captions, and "
          "model.vocab is None: give both or neither"
        )
    return None
  if classes:
    raise errors.BadConfig(
      f"model.classes={classes} and model.vocab={vocab}: a model is told "
      "labels or captions: --config.model.classes=0, or "
      "--config.model.vocab=None and its text_* keys None"
    )
  norm = functools.partial(Norm, True, norm_eps, 0.0, True)
  if text_layers == 0:
    return _of_features(
      vocab, text_length, text_dim, text_heads, text_mlp_dim, text_end, norm,
      dtype, std,
    )  # fmt: skip
  text_mlp_dim = 4 * text_dim if text_dim and not text_mlp_dim else text_mlp_dim
  at_least_1(vocab=vocab, **own, text_mlp_dim=text_mlp_dim)
  _check_end(text_end, vocab)
  if text_dim % text_heads:
    raise errors.BadConfig(
      f"model.text_dim={text_dim} is not divisible by "
      f"model.text_heads={text_heads}"
    )
  out_factor = 1.0 / math.sqrt(2 * text_layers)
  attention = functools.partial(
    Attention, text_dim, text_heads, text_heads, text_dim // text_heads, dtype,
    bias=True, out_bias=True, kernel=kernel, std=std, out_factor=out_factor,
    fused=fused,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, text_dim, text_mlp_dim, "gelu_tanh", False, dtype, True, std,
    out_factor, fused,
  )  # fmt: skip
  return functools.partial(
    Reader,
    vocab,
    embed=functools.partial(Embed, vocab + 1, text_dim, dtype, std),
    position=functools.partial(
      LearnedPositions, text_length, text_dim, dtype, std
    ),
    stack=functools.partial(
      Stack,
      text_layers,
      functools.partial(Block, norm, attention, mlp, dropout=dropout),
      remat=remat,
      unroll=1,
    ),
    norm=norm,
    end=text_end,
  )


def _of_features(
  vocab, text_length, text_dim, text_heads, text_mlp_dim, text_end, norm, dtype,
  std,
) -> Callable[..., Features]:  # fmt: skip
  """Features from the keys of `reader`. Raises BadConfig."""
  at_least_1(vocab=vocab, text_length=text_length, text_dim=text_dim)
  for name, value in dict(heads=text_heads, mlp_dim=text_mlp_dim).items():
    if value is not None:
      raise errors.BadConfig(
        f"model.text_{name}={value} and model.text_layers=0: another model "
        f"reads captions: --config.model.text_{name}=None, or text_layers of "
        "its own"
      )
  _check_end(text_end, vocab)
  return functools.partial(
    Features, functools.partial(Embed, 1, text_dim, dtype, std), norm, text_end
  )


def _check_end(text_end: int | None, vocab: int) -> None:
  if text_end is None or not 0 <= text_end < vocab:
    raise errors.BadConfig(
      f"model.text_end={text_end}: expected the id that ends a text, below "
      f"model.vocab={vocab}"
    )
