"""An encoder that says at each moment what it hears: a token, or nothing new.

Connectionist temporal classification (Graves et al., ICML 2006) over the parts
of Whisper's encoder: a log-mel spectrogram, convolutions, fixed positions, a
stack of blocks that see both ways.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.ear import Ear, TimeConvolution
from aigc_jax.layers.mel import HOP, WINDOW
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.position import sinusoids
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.readout import Aligned, Head, Readout
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1, share
from aigc_jax.models.decoder import checked_dtype

STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}  # of the two convolutions
EPS = 1e-5  # of the norms
Batch = Mapping[str, jax.Array]


class Ctc(nn.Module):
  """Aligned predictions for "audio" (B, A) of "audio_lengths" (B,).

  With "masks" (B, M, 4) rectangles of the spectrogram are hidden (layers/mel).

  A step is `stride` frames, 10 ms each, of the spectrogram. What lies behind an
  utterance is silence, and its steps are seen by none that is heard: a row says
  the same however far it is padded.
  """

  vocab: int
  blank: int
  dtype: jnp.dtype
  stride: int
  ear: Callable[..., Ear]
  stack: Callable[..., Stack]
  norm: NormFactory
  head: Callable[..., Head]
  dropout: float
  products: str = "plain"

  may_read = ("masks",)  # of a batch, beside what `example` has

  @nn.compact
  def __call__(self, batch: Batch) -> Aligned:
    audio_BA, lengths_B = batch["audio"], batch["audio_lengths"]
    step = HOP * self.stride
    # One step more than there are, so that sound always ends in silence.
    lacking = step + -audio_BA.shape[1] % step
    audio_BA = jnp.pad(audio_BA, ((0, 0), (0, lacking)))
    heard = self.ear(name="ear")(audio_BA, lengths_B, batch.get("masks"))
    x_BTD = heard[:, :-1]
    T, D = x_BTD.shape[1:]
    steps_B = -(lengths_B // -step)
    at_1T = jnp.arange(T, dtype=jnp.int32)[None]
    x_BTD = x_BTD + sinusoids(at_1T, D, x_BTD.dtype)
    x_BTD = Dropout(self.dropout, name="dropout")(x_BTD)
    segments_BT = (at_1T < steps_B[:, None]).astype(jnp.int32)
    visible = Visible(
      causal=False, segments_BT=segments_BT, segments_BS=segments_BT
    )
    x_BTD, _ = self.stack(name="stack")(x_BTD, Scene(visible))
    x_BTD = rounded(self.norm(name="norm")(x_BTD), self.operand_dtype)
    table_VD, bias_V = self.head(name="head")()
    readout = Readout(x_BTD, table_VD, bias_V=bias_V)
    return Aligned(readout, steps_B, self.blank)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of one row that is enough to initialise it, abstract."""
    return {
      "audio": jax.ShapeDtypeStruct((1, HOP), jnp.int16),
      "audio_lengths": jax.ShapeDtypeStruct((1,), jnp.int32),
    }

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)


def ctc(
  *,
  vocab: int,
  blank: int,
  bins: int,
  stride: int,
  layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None,
  activation: str,
  init_std: float | None,
  dropout: float,
  dtype: str,
  remat: str,
  unroll: int | None,
  kernel: str,
  fuse_projections: bool = True,
  products: str = "plain",
) -> Ctc:
  """A Ctc from plain values; the keys of `config.model`.

  blank: the id that stands for nothing new, which no text has; the tokenizer's
  end of text serves. stride: frames of 10 ms to a step: 1, 2 or 4. bins: bands
  of the spectrogram. mlp_dim: None is 4 dim. init_std: None is by fan-in.
  Raises BadConfig where they cannot go together.
  """
  at_least_1(vocab=vocab, bins=bins, layers=layers, dim=dim, heads=heads)
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(products, PRODUCTS, "compute.products")
  if stride not in STRIDES:
    raise errors.BadConfig(f"model.stride={stride}: expected 1, 2 or 4")
  if not 0 <= blank < vocab:
    raise errors.BadConfig(f"model.blank={blank}: expected 0 to {vocab - 1}")
  if bins > WINDOW // 2:
    raise errors.BadConfig(f"model.bins={bins}: expected at most {WINDOW // 2}")
  if dim % heads or dim % 2:
    raise errors.BadConfig(
      f"model.dim={dim}: expected an even multiple of model.heads={heads}"
    )
  kind, std = checked_dtype(dtype), init_std or 0.0
  norm = functools.partial(Norm, True, EPS, 0.0, True)
  attention = functools.partial(
    Attention, dim, heads, heads, dim // heads, kind, bias=True, out_bias=True,
    key_bias=False, kernel=kernel, std=std, fused=fuse_projections,
    products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(Block, norm, attention, mlp, dropout=dropout)
  convolution = functools.partial(
    TimeConvolution, dtype=kind, std=std, products=products
  )
  return Ctc(
    vocab=vocab,
    blank=blank,
    dtype=kind,
    stride=stride,
    ear=functools.partial(
      Ear, bins, activation, convolution, STRIDES[stride], dim
    ),
    stack=functools.partial(
      Stack, layers, block, remat=remat, unroll=unroll or 0
    ),
    norm=norm,
    head=functools.partial(Head, vocab, dim, std, True),
    dropout=dropout,
    products=products,
  )
