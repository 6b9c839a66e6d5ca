"""Whisper (arXiv:2212.04356): an encoder that hears, a decoder that writes.

An EncoderDecoder whose source is sound: a log-mel spectrogram, two convolutions
and fixed positions before the encoder, learned positions before the decoder.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block
from aigc_jax.layers.ear import Ear, TimeConvolution
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.lookup import check_gradient
from aigc_jax.layers.mel import HOP, RATE, WINDOW
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import Norm
from aigc_jax.layers.position import LearnedPositions, for_rows, sinusoids
from aigc_jax.layers.products import PRODUCTS
from aigc_jax.layers.stack import Stack
from aigc_jax.models.checks import at_least_1, share
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.encoder_decoder import Batch, EncoderDecoder, Side

STRIDES = (1, 2)  # of the convolutions
STEP = HOP * 2  # samples of a position of the encoder
EPS = 1e-5  # of the norms


class Whisper(EncoderDecoder, kw_only=True):
  """Predictions for "tokens" (B, T), given "audio" (B, A) of "audio_lengths".

  audio: 16-bit samples at RATE. Every utterance is heard as one of `samples`,
  silent behind its end, as published models are trained to: nothing masks what
  is not there. With "masks" (B, M, 4) rectangles of the spectrogram are hidden
  (layers/mel).
  """

  may_read = ("masks",)  # of a batch, beside what `example` has

  samples: int
  make_ear: Callable[..., Ear]
  make_position: Callable[..., LearnedPositions]

  def setup(self):
    super().setup()
    self.ear = self.make_ear()
    self.position = self.make_position()

  def encode(self, batch: Batch) -> jax.Array:
    """The memory (B, S, D), a position for each STEP samples."""
    audio_BA = batch["audio"]
    lacking = self.samples - audio_BA.shape[1]
    if lacking < 0:
      raise errors.BadConfig(
        f"the data gives {audio_BA.shape[1]} samples, the model hears "
        f"{self.samples}: lower data.seconds, or raise model.seconds"
      )
    audio_BA = jnp.pad(audio_BA, ((0, 0), (0, lacking)))
    x_BSD = self.ear(audio_BA, batch["audio_lengths"], batch.get("masks"))
    at_1S = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None]
    x_BSD = x_BSD + sinusoids(at_1S, x_BSD.shape[-1], x_BSD.dtype)
    return self.encoder(x_BSD)[0]

  def heard(self, tokens_UP: jax.Array, lengths_U: jax.Array) -> Batch:
    """The batch of prompts that are samples, as `sampling.decodes.Hears`."""
    audio_UA = tokens_UP[:, : self.samples].astype(jnp.int16)
    return {"audio": audio_UA, "audio_lengths": lengths_U}

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The least that a batch needs."""
    return {
      "audio": jax.ShapeDtypeStruct((1, HOP), jnp.int16),
      "audio_lengths": jax.ShapeDtypeStruct((1,), jnp.int32),
      "tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32),
    }

  def _embedded(self, tokens_BT, positions_BT):
    x_BTD, table_VD = self.embed(tokens_BT)
    fixed = positions_BT is None
    if fixed:
      positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    place_BTD = self.position(positions_BT, fixed=fixed)
    return x_BTD + for_rows(place_BTD, len(x_BTD)), table_VD


def steps_of(seconds: float) -> int:
  """Positions of the encoder. Raises BadConfig where they are not whole."""
  steps = round(seconds * RATE / STEP)
  if steps < 1 or abs(steps * STEP / RATE - seconds) > 1e-6:
    raise errors.BadConfig(
      f"model.seconds={seconds}: expected a multiple of {STEP / RATE}, the "
      f"time of one position, such as {max(steps, 1) * STEP / RATE}"
    )
  return steps


def whisper(
  *,
  vocab: int,
  seconds: float,
  bins: int,
  encoder_layers: int,
  decoder_layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None,
  activation: str,
  position_length: int,
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
) -> Whisper:
  """A Whisper from plain values; the keys of `config.model`.

  seconds: of the sound that it hears, 50 positions each. bins: bands of its
  spectrogram. position_length: tokens that it writes at most. mlp_dim: None is
  4 dim. start_token: what every text is written after; None is the tokenizer's
  end of text. embed_std and init_std: of fresh embeddings, learned positions
  with them, and of all other fresh weights; None for fan-in ** -0.5.

  Raises BadConfig where they cannot go together.
  """
  at_least_1(
    vocab=vocab, bins=bins, encoder_layers=encoder_layers,
    decoder_layers=decoder_layers, dim=dim, heads=heads,
    position_length=position_length,
  )  # fmt: skip
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(products, PRODUCTS, "compute.products")
  check_gradient(embed_gradient)
  if bins > WINDOW // 2:
    raise errors.BadConfig(
      f"model.bins={bins}: expected at most {WINDOW // 2}, as a window of "
      f"{WINDOW} samples has"
    )
  if dim % heads or dim % 2:
    raise errors.BadConfig(
      f"model.dim={dim}: expected an even multiple of model.heads={heads}"
    )
  if start_token is not None and not 0 <= start_token < vocab:
    raise errors.BadConfig(
      f"model.start_token={start_token}: expected 0 to {vocab - 1}, or None"
    )
  steps, head_dim = steps_of(seconds), dim // heads
  kind, std = checked_dtype(dtype), init_std or 0.0
  norm = functools.partial(Norm, True, EPS, 0.0, True)
  attention = functools.partial(
    Attention, dim, heads, heads, head_dim, kind, bias=True, out_bias=True,
    key_bias=False, kernel=kernel, std=std, fused=fuse_projections,
    products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(Block, norm, attention, mlp, dropout=dropout)
  cross = functools.partial(attention, cross=True)

  def side(layers: int, block: Callable[..., Block]) -> Callable[..., Side]:
    # unroll counts layers of either stack, as far as there are so many.
    trip = min(unroll or 0, layers)
    return functools.partial(
      Side,
      make_stack=functools.partial(Stack, layers, block, (), remat, trip),
      make_norm=norm,
      make_bias=None,
      sinusoidal=False,
      dropout=dropout,
    )

  return Whisper(
    vocab=vocab,
    dtype=kind,
    make_embed=functools.partial(
      Embed, vocab, dim, kind, embed_std or 0.0, 1.0, embed_gradient
    ),
    shared=True,  # sound has no embedding of its own
    make_encoder=side(encoder_layers, block),
    make_decoder=side(decoder_layers, functools.partial(block, cross=cross)),
    make_head=None,
    tied_scale=1.0,
    tied_bias=False,
    cache_shape=(decoder_layers, heads, head_dim),
    products=products,
    start=start_token,
    samples=steps * STEP,
    make_ear=functools.partial(
      Ear, bins, activation,
      functools.partial(
        TimeConvolution, dtype=kind, std=std, products=products
      ),
      STRIDES, dim,
    ),
    make_position=functools.partial(
      LearnedPositions, position_length, dim, kind, embed_std or 0.0,
      embed_gradient,
    ),
  )  # fmt: skip
