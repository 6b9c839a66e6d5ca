"""Decoder: embedding, positions, a stack of causal blocks, readout.

GPT-2/3, GPT-NeoX, Llama, Mistral, Qwen, Gemma, OLMo and others are choices of
its parts.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.attention import Attention, Cache
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.lookup import check_gradient
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import CENTRE, Norm, NormFactory
from aigc_jax.layers.parametrization import (
  Factors,
  Parametrization,
  parametrization_of,
)
from aigc_jax.layers.position import (
  LONGER,
  LearnedPositions,
  for_rows,
  frequencies,
  rotation,
  sinusoids,
)
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.readout import Head, Readout
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible

POSITIONS = ("rotary", "learned", "sinusoidal", "none")
Batch = Mapping[str, jax.Array]


class Decoder(nn.Module):
  """Next-token predictions for "tokens" (B, T) of a batch.

  Optional in the batch: "positions" and "segments", both (B, T). With a cache
  (see `cache`) positions are required, consecutive within each row, and say
  where the new keys go; the cache with them is returned beside the readout.
  """

  vocab: int
  dtype: jnp.dtype
  embed: Callable[..., Embed]
  stack: Callable[..., Stack]
  norm: NormFactory
  head: Callable[..., Head] | None  # None: the readout is tied to the embedding
  learned: Callable[..., LearnedPositions] | None
  sinusoidal: bool
  # {"": , "local": } length -> radians of rotary planes, where there are such
  turns: Mapping[str, Callable[[int], np.ndarray]]
  logit_softcap: float
  dropout: float
  cache_shape: tuple[int, int, int]  # layers, key heads, head width
  products: str = "plain"
  logit_multiplier: float = 0.0  # of the logits, before their cap; 0 means 1
  longer: float = 1.0  # what queries and keys become where they are turned
  parametrization: Parametrization | None = None  # None: standard

  @nn.compact
  def __call__(self, batch: Batch, cache: Cache | None = None):
    tokens_BT = batch["tokens"]
    given = batch.get("positions")
    positions_BT = given
    if given is None:
      positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    x_BTD, table_VD = self.embed(name="embed")(tokens_BT)
    if self.learned is not None:
      learned = self.learned(name="position")
      position_BTD = learned(positions_BT, fixed=given is None)
      x_BTD = x_BTD + for_rows(position_BTD, len(x_BTD))
    if self.sinusoidal:
      x_BTD = x_BTD + sinusoids(positions_BT, x_BTD.shape[-1], x_BTD.dtype)
    x_BTD = Dropout(self.dropout, name="dropout")(x_BTD)
    room = tokens_BT.shape[1] if cache is None else cache.keys_BSKH.shape[2]
    scene = self._scene(batch, positions_BT, room, cache is not None)
    x_BTD, cache_out = self.stack(name="stack")(x_BTD, scene, cache)
    x_BTD = self.norm(name="norm")(x_BTD)
    if self.logit_multiplier:
      x_BTD = x_BTD.astype(jnp.float32) * self.logit_multiplier
    x_BTD = rounded(x_BTD, self.operand_dtype)
    bias_V = None
    if self.head is not None:
      table_VD, bias_V = self.head(name="head")()
    readout = Readout(x_BTD, table_VD, self.logit_softcap, bias_V)
    return readout if cache is None else (readout, cache_out)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The least of a batch that it can be initialised with."""
    return {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def factors(self, path: str, optimizer: str) -> Factors:
    """What the numbers of the parameter at this path are multiplied by.

    Raises BadConfig for an optimizer of which the parametrization says nothing.
    """
    if self.parametrization is None:
      return Factors()
    return self.parametrization.factors(path, optimizer)

  def _scene(
    self, batch: Batch, positions_BT, length: int, cached: bool
  ) -> Scene:
    segments_BT = batch.get("segments")
    visible = Visible(
      causal=True,
      # Within segments causality is the order in the row, which the implicit
      # positions 0, 1, ... give; a cache has its slots for positions.
      positions_BT=positions_BT if cached else None,
      segments_BT=segments_BT,
      segments_BS=segments_BT,
    )
    turns = {
      name: rotation(
        positions_BT, radians(length), 1.0 if name else self.longer
      )
      for name, radians in self.turns.items()
    }
    return Scene(visible, turns.get(""), turns.get("local"))

  @property
  def source(self) -> bool:
    """Whether prompts are read apart from what is written: they are not."""
    return False

  def begin(self, batch: Batch, length: int) -> Cache:
    """A cache for up to `length` positions of each row of prompts."""
    return self.cache(len(batch["tokens"]), length)

  def next(
    self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache
  ) -> tuple[Readout, Cache]:
    """Predictions of what follows tokens at positions, which the cache gets."""
    return self({"tokens": tokens_BT, "positions": positions_BT}, cache)

  def cache(self, batch: int, length: int, dtype=None) -> Cache:
    """An empty cache for `batch` rows of up to `length` positions."""
    L, K, H = self.cache_shape
    zeros = jnp.zeros((L, batch, length, K, H), dtype or self.dtype)
    return Cache(zeros, zeros)


DTYPES = ("float32", "bfloat16")  # float16 would need its loss scaled


def checked_dtype(name: str) -> jnp.dtype:
  """That of `compute.dtype`; BadConfig for another."""
  if name not in DTYPES:
    raise errors.BadConfig(
      f"compute.dtype={name!r}{errors.nearest(str(name), DTYPES)} "
      f"(there are: {', '.join(DTYPES)})"
    )
  return jnp.dtype(name)


def _at_least_1(name: str, value: object) -> None:
  if not isinstance(value, int) or value < 1:
    raise errors.BadConfig(f"model.{name}={value!r}: expected at least 1")


def _factor(name: str, multiplier: float | None) -> float:
  """What a multiplication is by; 0 where there is none to be done."""
  if multiplier is not None and not multiplier > 0:
    raise errors.BadConfig(
      f"model.{name}={multiplier}: expected above 0, or None for no factor"
    )
  return 0.0 if multiplier in (None, 1) else float(multiplier)


def _check_together(key: str, asked: bool, other: str, there: bool) -> None:
  if asked and not there:
    raise errors.BadConfig(f"model.{key}=True needs model.{other}")


def _check_share(name: str, share: float) -> None:
  if not 0 <= share < 1:
    raise errors.BadConfig(f"model.{name}={share}: expected 0 to below 1")


def _check_windows(windows: tuple[int | None, ...]) -> None:
  if any(w is not None and w < 1 for w in windows):
    raise errors.BadConfig(
      f"model.windows={tuple(windows)}: expected lengths from 1, None for none"
    )


def _turned(
  position: str, length: int | None, head_dim: int, rotary_dim: int | None
) -> int:
  """How many components of a head rotary positions turn.

  Raises BadConfig where positions of this kind cannot be told to such heads.
  """
  if position not in POSITIONS:
    raise errors.BadConfig(
      f"model.position={position!r}{errors.nearest(position, POSITIONS)} "
      f"(there are: {', '.join(POSITIONS)})"
    )
  if position == "learned" and (length or 0) < 1:
    raise errors.BadConfig(
      "model.position='learned' needs model.position_length, the number of "
      f"positions, got {length}"
    )
  if position == "rotary" and head_dim % 2:
    raise errors.BadConfig(
      f"model.head_dim={head_dim}: rotary positions turn pairs, so it must be "
      "even"
    )
  turned = head_dim if rotary_dim is None else rotary_dim
  if position == "rotary" and (turned % 2 or not 2 <= turned <= head_dim):
    raise errors.BadConfig(
      f"model.rotary_dim={turned}: positions turn pairs, so it must be even, "
      f"from 2 to model.head_dim={head_dim}, or None for all of a head"
    )
  return turned


def _turns(
  turned: int, base: float, local_base: float | None, scaling: Mapping | None
) -> dict[str, Callable[[int], np.ndarray]]:
  """{"": , "local": } length -> radians; BadConfig where there are none."""
  found = {"": functools.partial(frequencies, turned, base, scaling)}
  if local_base:
    found["local"] = functools.partial(frequencies, turned, local_base, None)
  for radians in found.values():
    radians()  # what gives no frequencies is refused here
  return found


def _deviations(
  rule: Parametrization, init_std: float
) -> tuple[float, float, float]:
  """(deviation of a block's weights, factors of what attention and MLP add).

  0 and no factors where weights are by their fan-in, which has grown by itself
  with the width.
  """
  if not init_std:
    return init_std, 1.0, 1.0
  hidden = rule.deviation("stack/attention/query/w")
  read = rule.deviation("stack/attention/out/w") / hidden
  down = rule.deviation("stack/mlp/down/w") / hidden
  return init_std * hidden, read, down


def widths(
  *,
  dim: int,
  heads: int,
  kv_heads: int | None,
  head_dim: int | None,
  mlp_dim: int | None,
  gated: bool,
) -> dict[str, int]:
  """kv_heads, head_dim and mlp_dim, derived where they are None.

  As many key heads as query heads; heads that span the stream; an MLP of 4
  times the stream, or where it is gated and so has a matrix more, of 8/3
  (arXiv:2002.05202), rounded up to what divides well: a multiple of 128, or of
  8 below a dim of 128. Raises BadConfig for what is no width.
  """
  _at_least_1("dim", dim)
  _at_least_1("heads", heads)
  if not head_dim and dim % heads:
    raise errors.BadConfig(
      f"model.dim={dim} is not divisible by model.heads={heads}: the nearest "
      f"widths that are: {dim // heads * heads} and {-(-dim // heads) * heads} "
      "(or set model.head_dim)"
    )
  step = 128 if dim >= 128 else 8
  wanted = 8 * dim // 3 if gated else 4 * dim
  found = dict(
    kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=head_dim or dim // heads,
    mlp_dim=-(-wanted // step) * step if mlp_dim is None else mlp_dim,
  )
  for name, value in found.items():
    _at_least_1(name, value)
  return found


# What of a decoder's keywords is a size, and of a base model too.
SIZES = ("dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim")


def resolved(kwargs: Mapping) -> dict:
  """A decoder's keywords with what its parametrization multiplies by.

  Those of a standard decoder that is the same function of its parameters.
  """
  found = dict(kwargs)
  keys = ("dim", "heads", "kv_heads", "head_dim", "mlp_dim", "gated")
  sizes = widths(**{key: found[key] for key in keys})
  rule = parametrization_of(
    found["parametrization"],
    {key: sizes.get(key) or found[key] for key in SIZES},
    {key: found[f"base_{key}"] for key in SIZES},
    found["qk_norm_joint"],
  )
  names = (
    "attention_scale", "embed_scale", "embed_multiplier", "residual_multiplier",
    "logit_multiplier",
  )  # fmt: skip
  found |= rule.multipliers(**{name: found[name] for name in names})
  return found | {
    "parametrization": "standard",
    **{f"base_{key}": None for key in SIZES},
  }


def decoder(
  *,
  vocab: int,
  layers: int,
  dim: int,
  heads: int,
  kv_heads: int | None,
  head_dim: int | None,
  mlp_dim: int | None,
  activation: str,
  gated: bool,
  norm: str,
  norm_eps: float,
  norm_offset: float,
  norm_bias: bool,
  attention_bias: bool,
  out_bias: bool,
  mlp_bias: bool,
  post_norm: bool,
  qk_norm: bool,
  position: str,
  position_length: int | None,
  rotary_base: float,
  rotary_local_base: float | None,
  rotary_scaling: Mapping | None,
  windows: tuple[int | None, ...],
  attention_scale: float | None,
  attention_softcap: float | None,
  logit_softcap: float | None,
  embed_scale: bool,
  tied: bool,
  init_std: float | None,
  dropout: float,
  dtype: str,
  remat: str,
  unroll: int | None,
  kernel: str,
  # Work directories of before have no such keys.
  fuse_projections: bool = True,
  products: str = "plain",
  embed_gradient: str = "auto",
  embed_multiplier: float | None = None,
  residual_multiplier: float | None = None,
  logit_multiplier: float | None = None,
  rotary_layers: tuple[bool, ...] = (),
  rotary_dim: int | None = None,
  pre_norm: bool = True,
  qk_norm_joint: bool = False,
  parallel: bool = False,
  shared_norm: bool = False,
  head_bias: bool = False,
  parametrization: str = "standard",
  base_dim: int | None = None,
  base_layers: int | None = None,
  base_heads: int | None = None,
  base_kv_heads: int | None = None,
  base_head_dim: int | None = None,
  base_mlp_dim: int | None = None,
) -> Decoder:
  """A Decoder from plain values; the keys of `config.model`.

  None is what follows by itself: see `widths`, and presets/keys.py for the
  others. Raises BadConfig where they cannot go together.
  """
  found = widths(
    dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
    mlp_dim=mlp_dim, gated=gated,
  )  # fmt: skip
  kv_heads, head_dim, mlp_dim = found.values()
  for name, value in dict(vocab=vocab, layers=layers).items():
    _at_least_1(name, value)
  rule = parametrization_of(
    parametrization,
    dict(found, dim=dim, layers=layers, heads=heads),
    dict(
      dim=base_dim, layers=base_layers, heads=base_heads,
      kv_heads=base_kv_heads, head_dim=base_head_dim, mlp_dim=base_mlp_dim,
    ),
    qk_norm_joint,
  )  # fmt: skip
  multipliers = rule.multipliers(
    attention_scale, embed_scale, embed_multiplier, residual_multiplier,
    logit_multiplier,
  )  # fmt: skip
  attention_scale = multipliers["attention_scale"]
  # The layers take 0 for what is not there.
  attention_scale, init_std = attention_scale or 0.0, init_std or 0.0
  attention_softcap, logit_softcap = (
    attention_softcap or 0.0,
    logit_softcap or 0.0,
  )
  unroll = unroll or 0
  _check_share("dropout", dropout)
  _check_windows(windows)
  turned = _turned(position, position_length, head_dim, rotary_dim)
  _check_together("shared_norm", shared_norm, "parallel=True", parallel)
  _check_together("qk_norm_joint", qk_norm_joint, "qk_norm=True", qk_norm)
  _check_together("head_bias", head_bias, "tied=False", not tied)
  kind = checked_dtype(dtype)
  errors.choose(products, PRODUCTS, "compute.products")
  check_gradient(embed_gradient)
  normed: NormFactory = functools.partial(
    Norm, errors.choose(norm, CENTRE, "model.norm"), norm_eps, norm_offset,
  )  # fmt: skip
  layer_norm = functools.partial(normed, norm_bias)
  fresh_std = rule.fresh(init_std)
  # Each block adds twice to the residual stream (GPT-2, section 2.3); where
  # that is by the depth already, as many times as in the base.
  out_factor = 1.0 / math.sqrt(2 * rule.base.L)
  std, read, down = _deviations(rule, init_std)
  attention = functools.partial(
    Attention, dim, heads, kv_heads, head_dim, kind, attention_bias, out_bias,
    normed if qk_norm else None, qk_norm_joint, attention_scale,
    attention_softcap, kernel, std, out_factor * read, fuse_projections,
    products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, gated, kind, mlp_bias, std,
    out_factor * down, fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(
    Block, layer_norm, attention, mlp, post_norm, dropout, pre_norm, parallel,
    shared_norm,
    _factor("residual_multiplier", multipliers["residual_multiplier"]),
  )  # fmt: skip
  turns = {}
  if position == "rotary":
    turns = _turns(turned, rotary_base, rotary_local_base, rotary_scaling)
  learned = functools.partial(
    LearnedPositions, position_length, dim, kind, fresh_std, embed_gradient
  )
  scale = math.sqrt(dim) if multipliers["embed_scale"] else 1.0
  scale *= _factor("embed_multiplier", multipliers["embed_multiplier"]) or 1.0
  return Decoder(
    vocab=vocab,
    dtype=kind,
    embed=functools.partial(
      Embed, vocab, dim, kind, fresh_std, scale, embed_gradient
    ),
    stack=functools.partial(
      Stack, layers, block, tuple(windows), remat, unroll, tuple(rotary_layers)
    ),
    norm=layer_norm,
    head=None
    if tied
    else functools.partial(Head, vocab, dim, fresh_std, head_bias),
    learned=learned if position == "learned" else None,
    sinusoidal=position == "sinusoidal",
    turns=turns,
    logit_softcap=logit_softcap,
    dropout=dropout,
    cache_shape=(layers, kv_heads, head_dim),
    products=products,
    logit_multiplier=_factor(
      "logit_multiplier", multipliers["logit_multiplier"]
    ),
    parametrization=rule,
    longer=dict(rotary_scaling or {}).get(LONGER, 1.0),
  )
