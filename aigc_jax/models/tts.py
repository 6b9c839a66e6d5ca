"""Speech of text: the spectrogram behind a noisy one, told what it says.

Flow matching of spectrograms without an alignment, as in arXiv:2406.18009 and
arXiv:2506.13053: an encoder reads the text, its tokens are spread evenly over
the utterance, and a stack of adaptive blocks (models/dit.py) finds out where
each is really spoken. How long all of it takes is the sum of what each token
takes.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.adaptive import AdaptiveBlock, Modulation, modulated
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.mel import WINDOW
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.position import for_rows, sinusoids
from aigc_jax.layers.products import (
  PRODUCTS,
  beside_blocks,
  operand_dtype,
)
from aigc_jax.layers.speaking import Uttered, spread
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1, share
from aigc_jax.models.condition import Condition
from aigc_jax.models.decoder import checked_dtype

EPS = 1e-6  # of the norms
USUAL = 8.0  # frames: about what a fresh model takes for a token
Batch = Mapping[str, jax.Array]


class Tts(nn.Module):
  """ "mel" (B, F, C) at "time" (B,) as it would be without noise.

  A step has more numbers than a block is wide: noise would not pass through it,
  and a spectrogram does (arXiv:2511.13720).

  "mel_lengths" (B,): how many of the frames are of the utterance; none sees
  those behind. The text is "targets" (B, N) where "weights" (B, N) are not 0; a
  row without any is told nothing, for guidance. "speakers" (B,): who speaks;
  from `speakers` on, or where the entry is missing, anyone.
  """

  vocab: int
  bins: int
  speakers: int
  patch: int  # frames of 10 ms to a step
  dim: int
  dtype: jnp.dtype
  embed: Callable[..., Embed]
  embed_speaker: Callable[..., Embed]
  text_stack: Callable[..., Stack]
  norm: NormFactory
  condition: Callable[..., Condition]
  modulation: Callable[..., Modulation]
  stack: Callable[..., Stack]
  std: float = 0.0
  dropout: float = 0.0
  products: str = "plain"

  def setup(self):
    D, P, C = self.dim, self.patch, self.bins
    keys = dict(dtype=self.dtype, bias=True)
    small = dict(products=beside_blocks(self.products))
    self.embed_text = self.embed()
    self.embed_voice = self.embed_speaker()
    self.encoder = self.text_stack()
    self.text_norm = self.norm()
    self.duration = Einsum("BTD,D->BT", (D,), factor=0.1, **keys, **small)
    self.text_projection = Einsum(
      "BTD,DF->BTF", (D, D), std=self.std, products=self.products, **keys
    )
    self.patches = Einsum(
      "BTXC,XCD->BTD", (P, C, D), std=self.std, products=self.products, **keys
    )
    self.told = self.condition()
    self.drop = Dropout(self.dropout)
    self.blocks = self.stack()
    self.final = self.modulation(parts=2)
    self.projection = Einsum(
      "BTD,DXC->BTXC", (D, P, C), factor=0.0, **keys, **small
    )

  def __call__(self, batch: Batch) -> Uttered:
    mel_BFC, lengths_B = batch["mel"], batch["mel_lengths"]
    P, C = self.patch, self.bins
    if mel_BFC.shape[-1] != C:
      raise errors.BadConfig(
        f"the spectrogram has {mel_BFC.shape[-1]} bands, model.bins={C}"
      )
    B, F = mel_BFC.shape[:2]
    cut_BFC = jnp.pad(mel_BFC, ((0, 0), (0, -F % P), (0, 0)))
    cut_BTXC = cut_BFC.reshape(B, -1, P, C)
    T, steps_B = cut_BTXC.shape[1], -(lengths_B // -P)
    text_BND, count_B, log_frames_B = self._read(batch)
    text_BTD = self.text_projection(spread(text_BND, count_B, steps_B, T))
    at_1T = jnp.arange(T, dtype=jnp.int32)[None]
    places = for_rows(sinusoids(at_1T, self.dim, self.dtype), B)
    x_BTD = self.drop(self.patches(cut_BTXC) + text_BTD + places)
    x_BTD = sharding.constrain(x_BTD, "BTD")
    segments_BT = (at_1T < steps_B[:, None]).astype(jnp.int32)
    visible = Visible(
      causal=False, segments_BT=segments_BT, segments_BS=segments_BT
    )
    asked = dict(time=batch["time"], labels=self._speakers(batch))
    condition_BD = self.told(asked).condition_BD
    scene = Scene(visible, condition_BD=condition_BD)
    x_BTD, _ = self.blocks(x_BTD, scene)
    shift, scale = self.final(condition_BD)
    found_BTXC = self.projection(modulated(x_BTD, shift, scale, EPS))
    whole_BFC = found_BTXC.reshape(B, -1, C)[:, :F].astype(jnp.float32)
    return Uttered(sharding.constrain(whole_BFC, "B.."), log_frames_B)

  def log_frames(self, batch: Batch) -> jax.Array:
    """(B,) float32: the logarithm of how many frames each text takes."""
    return self._read(batch)[-1]

  def _read(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens read (B, N, D), how many (B,), logarithm of their frames)."""
    real_BN = batch["weights"] > 0
    none_B1 = ~jnp.any(real_BN, axis=1, keepdims=True)
    # Of a text that is not told one token remains, which no other text has.
    first_BN = jnp.arange(real_BN.shape[1])[None] == 0
    ids_BN = jnp.where(none_B1, self.vocab, batch["targets"])
    real_BN = real_BN | (none_B1 & first_BN)
    count_B = jnp.sum(real_BN, axis=1, dtype=jnp.int32)
    x_BND, _ = self.embed_text(ids_BN)
    at_1N = jnp.arange(ids_BN.shape[1], dtype=jnp.int32)[None]
    speaker_B1D, _ = self.embed_voice(self._speakers(batch)[:, None])
    places = for_rows(sinusoids(at_1N, self.dim, self.dtype), len(x_BND))
    x_BND = self.drop(x_BND + places + speaker_B1D)
    segments_BN = real_BN.astype(jnp.int32)
    visible = Visible(
      causal=False, segments_BT=segments_BN, segments_BS=segments_BN
    )
    x_BND, _ = self.encoder(x_BND, Scene(visible))
    x_BND = self.text_norm(x_BND)
    taken_BN = USUAL * nn.softplus(self.duration(x_BND).astype(jnp.float32))
    frames_B = jnp.sum(jnp.where(real_BN, taken_BN, 0.0), axis=1)
    return x_BND, count_B, jnp.log(frames_B + 1e-3)

  def _speakers(self, batch: Batch) -> jax.Array:
    if "speakers" not in batch:
      return jnp.full(len(batch["targets"]), self.speakers, jnp.int32)
    return jnp.minimum(batch["speakers"], self.speakers)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of one row that is enough to initialise it, abstract."""
    number, integer = jnp.float32, jnp.int32
    return {
      "mel": jax.ShapeDtypeStruct((1, self.patch, self.bins), number),
      "mel_lengths": jax.ShapeDtypeStruct((1,), integer),
      "time": jax.ShapeDtypeStruct((1,), number),
      "targets": jax.ShapeDtypeStruct((1, 1), integer),
      "weights": jax.ShapeDtypeStruct((1, 1), number),
    }


def tts(
  *,
  vocab: int,
  bins: int,
  speakers: int,
  patch: int,
  text_layers: int,
  layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None,
  activation: str = "gelu_tanh",
  init_std: float | None = None,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: str = "none",
  unroll: int | None = 1,
  kernel: str = "auto",
  fuse_projections: bool = True,
  products: str = "plain",
  embed_gradient: str = "auto",
) -> Tts:
  """A Tts from plain values; the keys of `config.model`.

  bins: bands of the spectrogram. speakers: how many voices it tells apart, 0
  for none. patch: frames of 10 ms to a step. text_layers: of the encoder, as
  wide as the `layers` behind it. mlp_dim: None is 4 dim. init_std: None is by
  fan-in; projections that begin as zeros do so anyway. Raises BadConfig where
  they cannot go together.
  """
  at_least_1(
    vocab=vocab, bins=bins, patch=patch, text_layers=text_layers,
    layers=layers, dim=dim, heads=heads,
  )  # fmt: skip
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(products, PRODUCTS, "compute.products")
  if speakers < 0:
    raise errors.BadConfig(f"model.speakers={speakers}: expected 0 or more")
  if bins > WINDOW // 2:
    raise errors.BadConfig(f"model.bins={bins}: expected at most {WINDOW // 2}")
  if dim % heads or dim % 2:
    raise errors.BadConfig(
      f"model.dim={dim}: expected an even multiple of model.heads={heads}"
    )
  kind, std = checked_dtype(dtype), init_std or 0.0
  small = beside_blocks(products)
  norm = functools.partial(Norm, True, EPS, 0.0, True)
  modulation = functools.partial(Modulation, dim, dtype=kind, products=small)
  attention = functools.partial(
    Attention, dim, heads, heads, dim // heads, kind, bias=True, out_bias=True,
    kernel=kernel, std=std, fused=fuse_projections, products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip

  def stack(layers: int, block: Callable) -> Callable[..., Stack]:
    # unroll counts layers of either stack, as far as there are so many.
    trip = min(unroll or 0, layers)
    return functools.partial(Stack, layers, block, remat=remat, unroll=trip)

  def table(rows: int) -> Callable[..., Embed]:
    return functools.partial(Embed, rows, dim, kind, std, 1.0, embed_gradient)

  return Tts(
    vocab=vocab,
    bins=bins,
    speakers=speakers,
    patch=patch,
    dim=dim,
    dtype=kind,
    embed=table(vocab + 1),  # the last row is of a text that is not told
    embed_speaker=table(speakers + 1),
    text_stack=stack(
      text_layers,
      functools.partial(Block, norm, attention, mlp, dropout=dropout),
    ),
    norm=norm,
    condition=functools.partial(Condition, speakers, dim, kind, std, small),
    modulation=modulation,
    stack=stack(
      layers,
      functools.partial(
        AdaptiveBlock, modulation, attention, mlp, EPS, dropout
      ),
    ),
    std=std,
    dropout=dropout,
    products=products,
  )
