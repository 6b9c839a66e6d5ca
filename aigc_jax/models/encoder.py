"""Encoder: embeddings, a stack of blocks that see both ways, heads.

BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and DistilBERT
(arXiv:1910.01108) are choices of its parts. Norms stand after each sum, as
those models have them.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.lookup import check_gradient
from aigc_jax.layers.mlp import Mlp, activate
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.position import LearnedPositions, for_rows
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.readout import Readout, bias_of
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.decoder import DTYPES

Batch = Mapping[str, jax.Array]


@struct.dataclass
class Encoded:
  """What an encoder gives; a part without its head is None.

  hidden_BTD: of each position. readout: predictions of tokens, at all positions
  or at those that the batch names. pooled_BD: of the first position, after a
  layer of its own. follows_BC: two logits, of whether the second text of a row
  follows the first (class 0) or does not.
  """

  hidden_BTD: jax.Array
  readout: Readout | None = None
  pooled_BD: jax.Array | None = None
  follows_BC: jax.Array | None = None


class TokenHead(nn.Module):
  """Features of masked tokens: dense, activation, norm; and a bias over ids."""

  vocab: int
  dense: Callable[..., Einsum]
  activation: str
  norm: NormFactory

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features (B, T, D) and the bias (V,) of their logits."""
    h = activate(self.activation, self.dense(name="dense")(x_BTD))
    return self.norm(name="norm")(h), bias_of(self, self.vocab)


class Encoder(nn.Module):
  """What stands at each position of "tokens" (B, T), read from all of them.

  Optional in the batch: "segments" (B, T), of which positions see only their
  own, 0 being padding; "positions" (B, T), else 0, 1, ...; "types" (B, T), the
  first or second text of a row, else 0; "at" (B, M), the positions whose tokens
  are predicted, else all of them. Returns Encoded.
  """

  vocab: int
  dtype: jnp.dtype
  embed: Callable[..., Embed]
  position: Callable[..., LearnedPositions]
  types: Callable[..., Embed] | None  # None: texts are not told apart
  norm: NormFactory
  stack: Callable[..., Stack]
  head: Callable[..., TokenHead] | None
  pooler: Callable[..., Einsum] | None
  follows: Callable[..., Einsum] | None
  dropout: float
  products: str = "plain"

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of one row that is enough to initialise it, abstract."""
    return {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}

  @nn.compact
  def __call__(self, batch: Batch) -> Encoded:
    x_BTD, table_VD = self._embedded(batch)
    segments_BT = batch.get("segments")
    visible = Visible(
      causal=False, segments_BT=segments_BT, segments_BS=segments_BT
    )
    x_BTD, _ = self.stack(name="stack")(x_BTD, Scene(visible))
    readout = pooled_BD = follows_BC = None
    if self.head is not None:
      x_BMD = x_BTD if "at" not in batch else taken(x_BTD, batch["at"])
      features_BMD, bias_V = self.head(name="head")(x_BMD)
      features_BMD = rounded(features_BMD, self.operand_dtype)
      readout = Readout(features_BMD, table_VD, bias_V=bias_V)
    if self.pooler is not None:
      first_B1D = x_BTD[:, :1]
      pooled_B1D = self.pooler(name="pooler")(first_B1D).astype(jnp.float32)
      pooled_B1D = jnp.tanh(pooled_B1D).astype(self.dtype)
      pooled_BD = pooled_B1D[:, 0]
      if self.follows is not None:
        follows_B1C = self.follows(name="follows")(pooled_B1D)
        follows_BC = follows_B1C[:, 0].astype(jnp.float32)
    return Encoded(x_BTD, readout, pooled_BD, follows_BC)

  def _embedded(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What the stack reads (B, T, D), and the table of the tokens (V, D)."""
    tokens_BT = batch["tokens"]
    given = batch.get("positions")
    positions_BT = given
    if given is None:
      positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    x_BTD, table_VD = self.embed(name="embed")(tokens_BT)
    positions = self.position(name="position")
    added_BTD = positions(positions_BT, fixed=given is None)
    if self.types is not None:
      # Without types all are 0: as the positions, one row for all.
      types_BT = batch.get("types", jnp.zeros((1, 1), jnp.int32))
      added_BTD = added_BTD + self.types(name="embed_type")(types_BT)[0]
    x_BTD = self.norm(name="norm")(x_BTD + for_rows(added_BTD, len(x_BTD)))
    return Dropout(self.dropout, name="dropout")(x_BTD), table_VD


def taken(x_BTD: jax.Array, at_BM: jax.Array) -> jax.Array:
  """x at the positions `at` of each row, (B, M, D)."""
  return jnp.take_along_axis(x_BTD, at_BM[..., None], axis=1)


def encoder(
  *,
  vocab: int,
  layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None = None,
  activation: str = "gelu",
  norm_eps: float = 1e-12,
  position_length: int = 512,
  position_start: int = 0,
  types: int = 2,
  token_head: bool = True,
  pooler: bool = False,
  next_sentence: bool = False,
  init_std: float | None = 0.02,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: str = "none",
  unroll: int | None = 1,
  kernel: str = "auto",
  fuse_projections: bool = True,
  products: str = "plain",
  embed_gradient: str = "auto",
) -> Encoder:
  """An Encoder from plain values; the keys of `config.model`.

  mlp_dim: None is 4 dim. position_start: rows of the table of positions that
  lie before the first one's and are never read, 2 in RoBERTa. types: kinds of
  text in a row, 0 for no such embedding. token_head: predictions of tokens.
  pooler: a layer over the first position; next_sentence: whether the second
  text follows the first, from there. Raises BadConfig where they cannot go
  together.
  """
  sizes = dict(
    vocab=vocab, layers=layers, dim=dim, heads=heads,
    mlp_dim=4 * dim if mlp_dim is None else mlp_dim,
    position_length=position_length,
  )  # fmt: skip
  for name, value in sizes.items():
    if value < 1:
      raise errors.BadConfig(f"model.{name}={value}: expected at least 1")
  for name, value in dict(position_start=position_start, types=types).items():
    if value < 0:
      raise errors.BadConfig(f"model.{name}={value}: expected 0 or more")
  if dim % heads:
    raise errors.BadConfig(
      f"model.dim={dim} is not divisible by model.heads={heads}: the nearest "
      f"widths that are: {dim // heads * heads} and {-(-dim // heads) * heads}"
    )
  if not 0 <= dropout < 1:
    raise errors.BadConfig(f"model.dropout={dropout}: expected 0 to below 1")
  if next_sentence and not pooler:
    raise errors.BadConfig(
      "model.next_sentence=True reads what the pooler gives: it needs "
      "model.pooler=True"
    )
  kind = errors.choose(
    dtype, {n: jnp.dtype(n) for n in DTYPES}, "compute.dtype"
  )
  std = init_std or 0.0
  errors.choose(products, PRODUCTS, "compute.products")
  check_gradient(embed_gradient)
  norm = functools.partial(Norm, centre=True, eps=norm_eps, bias=True)
  attention = functools.partial(
    Attention, dim, heads, heads, dim // heads, kind, bias=True, out_bias=True,
    kernel=kernel, std=std, fused=fuse_projections, products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, sizes["mlp_dim"], activation, False, kind, bias=True, std=std,
    products=products,
  )  # fmt: skip
  block = functools.partial(
    Block, norm, attention, mlp, dropout=dropout, pre_norm=False, norm_sum=True
  )
  embed = functools.partial(
    Embed, dim=dim, dtype=kind, std=std, gradient=embed_gradient
  )
  # Both axes of these matrices are a width: the letter of the second has no
  # rule, so that they are cut along the first alone.
  square = functools.partial(
    Einsum, "BTD,DC->BTC", (dim, dim), kind, True, std, products=products
  )
  return Encoder(
    vocab=vocab,
    dtype=kind,
    embed=functools.partial(embed, vocab),
    position=functools.partial(
      LearnedPositions, position_length, dim, kind, std, embed_gradient,
      position_start,
    ),
    types=functools.partial(embed, types) if types else None,
    norm=norm,
    stack=functools.partial(Stack, layers, block, (), remat, unroll or 0),
    head=functools.partial(TokenHead, vocab, square, activation, norm)
    if token_head
    else None,
    pooler=square if pooler else None,
    follows=functools.partial(
      Einsum, "BTD,DC->BTC", (dim, 2), kind, True, std, products=products
    )
    if next_sentence
    else None,
    dropout=dropout,
    products=products,
  )  # fmt: skip
