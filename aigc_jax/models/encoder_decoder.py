"""Encoder-decoder: a stack that reads a source, and one that writes a target.

The Transformer of arXiv:1706.03762 (also Marian) and T5 (arXiv:1910.10683) are
choices of its parts.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.attention import Attention, Cache
from aigc_jax.layers.block import Block, Caches, Dropout, Scene
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.lookup import check_gradient
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import CENTRE, Norm, NormFactory
from aigc_jax.layers.position import sinusoids
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.readout import Head, Readout, TiedHead
from aigc_jax.layers.relative import RelativeBias
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.decoder import widths as decoder_widths

POSITIONS = ("sinusoidal", "relative", "none")
NORM_PLACES = ("before", "after")
Batch = Mapping[str, jax.Array]


class Side(nn.Module):
  """The encoder or the decoder: positions, a stack, a norm.

  causal: no position sees those behind it; so it is in the decoder.
  """

  causal: bool
  make_stack: Callable[..., Stack]
  make_norm: NormFactory | None  # after the stack
  make_bias: Callable[..., RelativeBias] | None
  sinusoidal: bool
  dropout: float

  def setup(self):
    self.stack = self.make_stack()
    if self.make_norm:
      self.norm = self.make_norm()
    if self.make_bias:
      self.position = self.make_bias(causal=self.causal)
    self.drop_in, self.drop_out = Dropout(self.dropout), Dropout(self.dropout)

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    memory_BSD: jax.Array | None = None,
    memory_segments_BS: jax.Array | None = None,
    caches: Caches | None = None,
  ) -> tuple[jax.Array, Caches | None]:
    """(B, T, D), and the caches with their leading axis L, where given.

    positions_BT: None for 0, 1, ... in each row. Segments: None where all of a
    row belongs together; those of a memory need those of the rows that read it.
    """
    T, D = x_BTD.shape[1:]
    rows_BT = jnp.arange(T, dtype=jnp.int32)[None]
    if self.sinusoidal:
      at_BT = rows_BT if positions_BT is None else positions_BT
      x_BTD = x_BTD + sinusoids(at_BT, D, x_BTD.dtype, closed=False)
    x_BTD = self.drop_in(x_BTD)
    cached_BT = None  # positions, where they say which slots of a cache
    if caches is not None:
      cached_BT, S = positions_BT, caches.own.keys_BSKH.shape[-3]
    bias_BNTS = None
    if self.make_bias and caches is not None:
      bias_BNTS = self.position(cached_BT, S)
    elif self.make_bias:
      # Within a segment distances are those in the row, wherever it begins.
      bias_BNTS = self.position(rows_BT, T)
    scene = Scene(
      Visible(
        causal=self.causal, positions_BT=cached_BT,
        segments_BT=segments_BT, segments_BS=segments_BT,
      ),
      bias_BNTS=bias_BNTS,
      memory_BSD=memory_BSD,
      memory_visible=Visible(
        causal=False, segments_BT=segments_BT, segments_BS=memory_segments_BS
      ),
    )  # fmt: skip
    x_BTD, caches = self.stack(x_BTD, scene, caches)
    if self.make_norm:
      x_BTD = self.norm(x_BTD)
    return self.drop_out(x_BTD) if self.make_norm else x_BTD, caches

  def remember(self, memory_BSD: jax.Array) -> Cache:
    """What the layers read of a memory, with their leading axis L."""
    return self.stack.remember(memory_BSD)


class EncoderDecoder(nn.Module):
  """Predictions for "tokens" (B, T), given "encoder_tokens" (B, S).

  The tokens are those before the ones that are predicted: a target's first is
  predicted from a token that begins all of them.

  Optional in the batch: "encoder_segments" (B, S), 0 where there is padding,
  which nothing sees; with it "segments" (B, T), by default all 1, says which
  segment of the source each token may read; "encoder_positions" and
  "positions".
  """

  vocab: int
  dtype: jnp.dtype
  make_embed: Callable[..., Embed]
  shared: bool  # one embedding for source and target
  make_encoder: Callable[..., Side]
  make_decoder: Callable[..., Side]
  make_head: Callable[..., Head] | None  # None: tied to the embedding
  tied_scale: float  # of the features, where the readout is tied
  tied_bias: bool
  cache_shape: tuple[int, int, int]  # layers, key heads, head width
  products: str = "plain"
  start: int | None = None  # what targets are written after

  def setup(self):
    self.embed = self.make_embed()
    if not self.shared:
      self.encoder_embed = self.make_embed()
    self.encoder = self.make_encoder(causal=False)
    self.decoder = self.make_decoder(causal=True)
    if self.make_head is not None:
      self.head = self.make_head()
    elif self.tied_bias:
      self.head = TiedHead(self.vocab)

  def __call__(self, batch: Batch) -> Readout:
    memory_BSD = self.encode(batch)
    segments_BS, segments_BT = batch.get("encoder_segments"), None
    if segments_BS is not None:
      ones_BT = jnp.ones(batch["tokens"].shape, segments_BS.dtype)
      segments_BT = batch.get("segments", ones_BT)
    positions_BT = batch.get("positions")
    x_BTD, table_VD = self._embedded(batch["tokens"], positions_BT)
    x_BTD, _ = self.decoder(
      x_BTD,
      positions_BT=positions_BT,
      segments_BT=segments_BT,
      memory_BSD=memory_BSD,
      memory_segments_BS=segments_BS,
    )
    return self._read(x_BTD, table_VD)

  def encode(self, batch: Batch) -> jax.Array:
    """The memory (B, S, D) of a source."""
    embed = self.embed if self.shared else self.encoder_embed
    memory_BSD, _ = self.encoder(
      embed(batch["encoder_tokens"])[0],
      positions_BT=batch.get("encoder_positions"),
      segments_BT=batch.get("encoder_segments"),
    )
    return memory_BSD

  def begin(self, batch: Batch, length: int) -> Caches:
    """Caches for up to `length` positions of targets of the sources (B, S)."""
    memory_BSD = self.encode(batch)
    memory = self.decoder.remember(memory_BSD)
    L, K, H = self.cache_shape
    B, S, _ = memory_BSD.shape
    segments_BS = batch.get("encoder_segments", jnp.ones((B, S), jnp.int32))
    zeros = jnp.zeros((L, B, length, K, H), self.dtype)
    # Of packed sources any segment would be read: decoding has one a row.
    segments_LBS = jnp.broadcast_to(segments_BS > 0, (L, B, S))
    return Caches(Cache(zeros, zeros), memory, segments_LBS.astype(jnp.int32))

  def next(
    self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Caches
  ) -> tuple[Readout, Caches]:
    """Predictions of what follows tokens at positions, which the cache gets."""
    x_BTD, table_VD = self._embedded(tokens_BT, positions_BT)
    x_BTD, cache = self.decoder(x_BTD, positions_BT=positions_BT, caches=cache)
    return self._read(x_BTD, table_VD), cache

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The least that a batch needs."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return {"encoder_tokens": one, "tokens": one}

  @property
  def source(self) -> bool:
    """Whether prompts are read apart from what is written: as a source."""
    return True

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def _embedded(
    self, tokens_BT: jax.Array, positions_BT: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """What the decoder reads (B, T, D), and the table of a tied readout."""
    return self.embed(tokens_BT)

  def _read(self, x_BTD: jax.Array, table_VD: jax.Array) -> Readout:
    tied = self.make_head is None
    if tied and self.tied_scale != 1.0:
      x_BTD = x_BTD.astype(jnp.float32) * self.tied_scale
    x_BTD = rounded(x_BTD, self.operand_dtype)
    bias_V = None
    if not tied:
      table_VD, bias_V = self.head()
    elif self.tied_bias:
      bias_V = self.head()
    return Readout(x_BTD, table_VD, bias_V=bias_V)


def _at_least_1(name: str, value: object) -> None:
  if not isinstance(value, int) or value < 1:
    raise errors.BadConfig(f"model.{name}={value!r}: expected at least 1")


def widths(
  *,
  dim: int,
  heads: int,
  head_dim: int | None,
  mlp_dim: int | None,
  gated: bool,
) -> dict[str, int]:
  """head_dim and mlp_dim, derived where they are None as a decoder's are.

  Raises BadConfig for what is no width.
  """
  found = decoder_widths(
    dim=dim, heads=heads, kv_heads=None, head_dim=head_dim, mlp_dim=mlp_dim,
    gated=gated,
  )  # fmt: skip
  return {name: found[name] for name in ("head_dim", "mlp_dim")}


def encoder_decoder(
  *,
  vocab: int,
  encoder_layers: int,
  decoder_layers: int,
  dim: int,
  heads: int,
  head_dim: int | None,
  mlp_dim: int | None,
  activation: str,
  gated: bool,
  norm: str,
  norm_eps: float,
  norm_bias: bool,
  norm_place: str,
  final_norm: bool,
  attention_bias: bool,
  mlp_bias: bool,
  attention_scale: float | None,
  position: str,
  relative_buckets: int | None,
  relative_distance: int | None,
  embed_scale: bool,
  shared: bool,
  tied: bool,
  tied_scale: bool,
  head_bias: bool,
  start_token: int | None,
  embed_std: float | None,
  init_std: float | None,
  dropout: float,
  dtype: str,
  remat: str,
  unroll: int | None,
  kernel: str,
  fuse_projections: bool = True,
  products: str = "plain",
  embed_gradient: str = "auto",
) -> EncoderDecoder:
  """An EncoderDecoder from plain values; the keys of `config.model`.

  norm_place: "before" each part (T5), or "after" it, of the sum (Vaswani et
  al.); final_norm: one more after each stack. position: "relative" learns a
  bias of the scores for each of relative_buckets of the distance, which reach
  to relative_distance; "sinusoidal" adds fixed vectors to the embeddings.
  embed_scale: embeddings times dim ** 0.5. shared: one embedding for source
  and target. tied: the readout is that of the target, whose features
  tied_scale multiplies by dim ** -0.5. attention_scale: None for head_dim **
  -0.5; fresh scores are alike whatever it is. start_token: what every target
  is written after; None is the tokenizer's end of text. embed_std and
  init_std: of fresh embeddings and of all other fresh weights, None for fan-in
  ** -0.5.

  Raises BadConfig where they cannot go together.
  """
  head_dim, mlp_dim = widths(
    dim=dim, heads=heads, head_dim=head_dim, mlp_dim=mlp_dim, gated=gated
  ).values()
  sizes = dict(
    vocab=vocab, encoder_layers=encoder_layers, decoder_layers=decoder_layers
  )
  relative = position == "relative"
  if relative:
    sizes |= dict(
      relative_buckets=relative_buckets, relative_distance=relative_distance
    )
  for name, value in sizes.items():
    _at_least_1(name, value)
  errors.choose(position, dict.fromkeys(POSITIONS), "model.position")
  errors.choose(norm_place, dict.fromkeys(NORM_PLACES), "model.norm_place")
  errors.choose(products, PRODUCTS, "compute.products")
  check_gradient(embed_gradient)
  if not 0 <= dropout < 1:
    raise errors.BadConfig(f"model.dropout={dropout}: expected 0 to below 1")
  if relative and not relative_buckets // 4 < relative_distance:
    raise errors.BadConfig(
      f"model.relative_distance={relative_distance}: expected more than "
      f"model.relative_buckets={relative_buckets} / 4, the distances that have "
      "a bucket each"
    )
  if relative and relative_buckets % 4:
    raise errors.BadConfig(
      f"model.relative_buckets={relative_buckets}: expected a multiple of 4"
    )
  if tied_scale and not tied:
    raise errors.BadConfig("model.tied_scale=True needs model.tied=True")
  if start_token is not None and not 0 <= start_token < vocab:
    raise errors.BadConfig(
      f"model.start_token={start_token}: expected 0 to {vocab - 1}, or None"
    )
  kind, std = checked_dtype(dtype), init_std or 0.0
  normed: NormFactory = functools.partial(
    Norm, errors.choose(norm, CENTRE, "model.norm"), norm_eps, 0.0, norm_bias
  )
  scale = attention_scale or head_dim**-0.5
  attention = functools.partial(
    Attention, dim, heads, heads, head_dim, kind, attention_bias,
    attention_bias, scale=scale, kernel=kernel, std=std,
    fused=fuse_projections, products=products,
    query_factor=1.0 if std else head_dim**-0.5 / scale,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, gated, kind, mlp_bias, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip
  after = norm_place == "after"
  block = functools.partial(
    Block, normed, attention, mlp, dropout=dropout, pre_norm=not after,
    norm_sum=after,
  )  # fmt: skip
  bias = functools.partial(
    RelativeBias, heads, relative_buckets, relative_distance, std=std
  )

  def side(layers: int, block: Callable[..., Block]) -> Callable[..., Side]:
    # unroll counts layers of either stack, as far as there are so many.
    trip = min(unroll or 0, layers)
    stack = functools.partial(Stack, layers, block, (), remat, trip)
    return functools.partial(
      Side,
      make_stack=stack,
      make_norm=normed if final_norm else None,
      make_bias=bias if relative else None,
      sinusoidal=position == "sinusoidal",
      dropout=dropout,
    )

  cross = functools.partial(attention, cross=True)
  return EncoderDecoder(
    vocab=vocab,
    dtype=kind,
    make_embed=functools.partial(
      Embed, vocab, dim, kind, embed_std or 0.0,
      math.sqrt(dim) if embed_scale else 1.0, embed_gradient,
    ),
    shared=shared,
    make_encoder=side(encoder_layers, block),
    make_decoder=side(decoder_layers, functools.partial(block, cross=cross)),
    make_head=None
    if tied
    else functools.partial(Head, vocab, dim, std, head_bias),
    tied_scale=dim**-0.5 if tied_scale else 1.0,
    tied_bias=head_bias,
    cache_shape=(decoder_layers, heads, head_dim),
    products=products,
    start=start_token,
  )  # fmt: skip
