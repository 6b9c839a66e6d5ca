"""CLIP and SigLIP: an image and a text, each as a point of one sphere.

Two towers (arXiv:2103.00020, arXiv:2303.15343): a vision transformer and a text
transformer, whose features are projected and normalised. CLIP's text tower is
causal and read at the end of text; SigLIP's sees both ways, is read at the last
position, and its images are read by attention.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.lookup import check_gradient
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.position import LearnedPositions, for_rows
from aigc_jax.layers.products import beside_blocks
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1
from aigc_jax.models.images import image_example
from aigc_jax.models.vit import Vit, vit

Batch = Mapping[str, jax.Array]


@struct.dataclass
class Embedded:
  """Images and texts on the unit sphere, and how near is near; all float32.

  The logit of an image and a text is exp(log_scale) times the product of their
  embeddings, and `bias` more, where there is one.
  """

  images_BZ: jax.Array
  texts_BZ: jax.Array
  log_scale: jax.Array
  bias: jax.Array | None = None

  def logits(self) -> jax.Array:
    """(B, B): of each image, along the rows, with each text."""
    z_BC = jnp.einsum(
      "BZ,CZ->BC", self.images_BZ, self.texts_BZ, precision="highest"
    )
    z_BC = z_BC * jnp.exp(self.log_scale)
    return z_BC if self.bias is None else z_BC + self.bias


class TextTower(nn.Module):
  """The features (B, D) of texts (B, T), or `each` token's (B, T, D).

  end: the id whose first place in a row is read; None reads the last place.
  Where texts are causal, what stands behind that end is never seen.
  """

  embed: Callable[..., Embed]
  position: Callable[..., LearnedPositions]
  stack: Callable[..., Stack]
  norm: NormFactory
  causal: bool
  end: int | None
  dropout: float

  @nn.compact
  def __call__(self, tokens_BT: jax.Array, each: bool = False) -> jax.Array:
    B, T = tokens_BT.shape
    x_BTD, _ = self.embed(name="embed")(tokens_BT)
    at_1T = jnp.arange(T, dtype=jnp.int32)[None]
    place_1TD = self.position(name="position")(at_1T, fixed=True)
    x_BTD = x_BTD + for_rows(place_1TD, B)
    x_BTD = Dropout(self.dropout, name="dropout")(x_BTD)
    scene = Scene(Visible(causal=self.causal))
    x_BTD, _ = self.stack(name="stack")(x_BTD, scene)
    norm = self.norm(name="norm")
    if each:
      return norm(x_BTD)
    x_BD = x_BTD[:, -1]
    if self.end is not None:
      last_B = jnp.argmax(tokens_BT == self.end, axis=1)
      x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
    return norm(x_BD)


class Similarity(nn.Module):
  """What logits are made of beside the embeddings: a scale and a bias."""

  log_scale: float
  bias: float | None

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array | None]:
    """(log scale, bias or None), numbers."""

    def number(name: str, value: float) -> jax.Array:
      start = nn.initializers.constant(value)
      return self.param(name, sharding.named(start, ""), ())

    log_scale = number("log_scale", self.log_scale)
    return log_scale, None if self.bias is None else number("bias", self.bias)


class Clip(nn.Module):
  """What is Embedded of "images" (B, Y, X, C) and their "tokens" (B, T)."""

  image: Vit
  text: TextTower
  image_projection: Einsum | None
  text_projection: Einsum
  similarity: Similarity
  text_length: int
  text_dim: int
  limits: Mapping[str, float]  # the most that a parameter may be, by its path

  def __call__(self, batch: Batch) -> Embedded:
    images_BZ = self.embed_images(batch["images"])
    return Embedded(
      images_BZ, self.embed_texts(batch["tokens"]), *self.similarity()
    )

  def embed_images(self, images_BYXC: jax.Array) -> jax.Array:
    """(B, Z), each of length one."""
    x_BD = self.image({"images": images_BYXC})
    if self.image_projection is not None:
      x_BD = self.image_projection(x_BD)
    return on_sphere(x_BD)

  def embed_texts(self, tokens_BT: jax.Array) -> jax.Array:
    """(B, Z), each of length one."""
    return on_sphere(self.text_projection(self.text(tokens_BT)))

  def read_texts(self, tokens_BT: jax.Array) -> jax.Array:
    """(B, T, D): what the text tower says at each token, as others read it."""
    return self.text(tokens_BT, each=True)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return self.image.operand_dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image.image) | {
      "tokens": jax.ShapeDtypeStruct((1, self.text_length), jnp.int32)
    }


def on_sphere(x_BZ: jax.Array) -> jax.Array:
  """x over its length, in float32; where there is none, zero."""
  x_BZ = x_BZ.astype(jnp.float32)
  square_B1 = jnp.sum(x_BZ**2, axis=-1, keepdims=True)
  x_BZ = x_BZ * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))
  return sharding.constrain(x_BZ, "BZ")


def clip(
  *,
  image_size: int,
  channels: int,
  patch: int,
  image_layers: int,
  image_dim: int,
  image_heads: int,
  image_mlp_dim: int | None,
  vocab: int,
  text_length: int,
  text_layers: int,
  text_dim: int,
  text_heads: int,
  text_mlp_dim: int | None,
  embed_dim: int,
  activation: str,
  norm_eps: float,
  image_pool: str,
  image_norm_before: bool,
  patch_bias: bool,
  image_projection: bool,
  projection_bias: bool,
  text_causal: bool,
  text_end: int | None,
  scale: float,
  most_scale: float | None,
  bias: float | None,
  init_std: float | None,
  dropout: float,
  dtype: str,
  remat: str,
  unroll: int | None,
  kernel: str,
  fuse_projections: bool = True,
  products: str = "plain",
  embed_gradient: str = "auto",
) -> Clip:
  """A Clip from plain values; the keys of `config.model`.

  mlp_dims: None is 4 dim. image_pool: as of a vit. image_projection: whether
  images are projected to `embed_dim`, which else is image_dim; projection_bias:
  of those there are. text_end: the id of the end of a text, at which it is read
  and after which padding comes; None reads the last place of a row. scale,
  bias: of fresh logits; a bias of None is none. most_scale: the most that the
  scale may become, None for no such. Raises BadConfig where they cannot go
  together.
  """
  at_least_1(
    vocab=vocab, text_length=text_length, text_layers=text_layers,
    text_dim=text_dim, text_heads=text_heads, embed_dim=embed_dim,
  )  # fmt: skip
  text_mlp_dim = 4 * text_dim if text_mlp_dim is None else text_mlp_dim
  at_least_1(text_mlp_dim=text_mlp_dim)
  _check(
    image_dim, text_dim, text_heads, embed_dim, image_projection, vocab,
    text_end, scale, most_scale, unroll, image_layers, text_layers,
  )  # fmt: skip
  check_gradient(embed_gradient)
  image = vit(
    classes=None, image_size=image_size, channels=channels, patch=patch,
    layers=image_layers, dim=image_dim, heads=image_heads,
    mlp_dim=image_mlp_dim, activation=activation, norm_eps=norm_eps,
    position="learned", pool=image_pool, registers=0, rotary_base=100.0,
    init_std=init_std, dropout=dropout, dtype=dtype, remat=remat, unroll=unroll,
    kernel=kernel, fuse_projections=fuse_projections, products=products,
    norm_before=image_norm_before, patch_bias=patch_bias,
  )  # fmt: skip
  kind, std = image.dtype, init_std or 0.0
  norm = functools.partial(Norm, True, norm_eps, 0.0, True)
  out_factor = 1.0 / math.sqrt(2 * text_layers)  # as of a vit
  attention = functools.partial(
    Attention, text_dim, text_heads, text_heads, text_dim // text_heads, kind,
    bias=True, out_bias=True, kernel=kernel, std=std, out_factor=out_factor,
    fused=fuse_projections, products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, text_dim, text_mlp_dim, activation, False, kind, True, std, out_factor,
    fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(Block, norm, attention, mlp, dropout=dropout)
  text = TextTower(
    embed=functools.partial(
      Embed, vocab, text_dim, kind, std, gradient=embed_gradient
    ),
    position=functools.partial(
      LearnedPositions, text_length, text_dim, kind, std, embed_gradient
    ),
    stack=functools.partial(
      Stack, text_layers, block, remat=remat, unroll=unroll or 0
    ),
    norm=norm,
    causal=text_causal,
    end=text_end,
    dropout=dropout,
  )

  def projection(dim: int) -> Einsum:
    return Einsum(
      "BD,DZ->BZ", (dim, embed_dim), kind, projection_bias, std,
      products=beside_blocks(products),
    )  # fmt: skip

  limits = {}
  if most_scale is not None:
    limits["similarity/log_scale"] = math.log(most_scale)
  return Clip(
    image=image,
    text=text,
    image_projection=projection(image_dim) if image_projection else None,
    text_projection=projection(text_dim),
    similarity=Similarity(math.log(scale), bias),
    text_length=text_length,
    text_dim=text_dim,
    limits=limits,
  )


def _check(
  image_dim, text_dim, text_heads, embed_dim, image_projection, vocab, text_end,
  scale, most_scale, unroll, image_layers, text_layers,
) -> None:  # fmt: skip
  """Raises BadConfig where keys of `clip` cannot go together."""
  if text_dim % text_heads:
    raise errors.BadConfig(
      f"model.text_dim={text_dim} is not divisible by "
      f"model.text_heads={text_heads}"
    )
  if not image_projection and image_dim != embed_dim:
    raise errors.BadConfig(
      f"model.image_projection=False needs model.embed_dim={image_dim}, the "
      f"width of the image tower: it is {embed_dim}"
    )
  if text_end is not None and not 0 <= text_end < vocab:
    raise errors.BadConfig(
      f"model.text_end={text_end}: expected an id below model.vocab={vocab}, "
      "or None to read the last place"
    )
  if not scale > 0:
    raise errors.BadConfig(f"model.scale={scale}: expected above 0")
  if most_scale is not None and not most_scale >= scale:
    raise errors.BadConfig(
      f"model.most_scale={most_scale}: expected model.scale={scale} or more, "
      "or None for no limit"
    )
  least = min(image_layers, text_layers)
  if not 0 <= (unroll or 0) <= least:
    raise errors.BadConfig(
      f"compute.unroll={unroll}: expected None (all) or 1 to {least}, the "
      "layers of the smaller tower"
    )
