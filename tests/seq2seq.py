"""Tiny encoder-decoders of both styles, their sizes all different."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.models import encoder_decoder
from tests import fresh
from tests.tiny import perturbed

T5 = dict(
  vocab=37, encoder_layers=3, decoder_layers=2, dim=24, heads=4, head_dim=8,
  mlp_dim=44, activation="relu", gated=False, norm="rms", norm_eps=1e-6,
  norm_bias=False, norm_place="before", final_norm=True, attention_bias=False,
  mlp_bias=False, attention_scale=1.0, position="relative", relative_buckets=8,
  relative_distance=20, embed_scale=False, shared=True, tied=True,
  tied_scale=True, head_bias=False, start_token=0, embed_std=1.0, init_std=None,
  dropout=0.0, dtype="float32", remat="none", unroll=1, kernel="xla",
)  # fmt: skip
STYLES = {
  "t5": T5,
  "t5_v1_1": T5 | dict(
    activation="gelu_tanh", gated=True, tied=False, tied_scale=False,
  ),
  "transformer": T5 | dict(
    norm="layer", norm_eps=1e-5, norm_bias=True, norm_place="after",
    final_norm=False, attention_bias=True, mlp_bias=True, attention_scale=None,
    position="sinusoidal", relative_buckets=None, relative_distance=None,
    embed_scale=True, tied_scale=False, embed_std=None, start_token=None,
  ),
}  # fmt: skip
STYLES["marian"] = STYLES["transformer"] | dict(
  activation="silu", head_bias=True, start_token=36
)
STYLES["apart"] = STYLES["transformer"] | dict(
  shared=False, tied=False, norm_place="before", final_norm=True
)


def build(style: str, **changes):
  return encoder_decoder(**STYLES[style] | changes)


@functools.cache
def params_of(style: str):
  """Parameters of a style; the fields that do not shape them may change."""
  model = build(style)
  found = fresh.variables(model, model.example())
  return jax.tree.map(perturbed, found["params"])


def batch_of(B: int = 2, S: int = 9, T: int = 7, seed: int = 0) -> dict:
  """Sources padded to different lengths, targets whole."""
  draw = np.random.default_rng(seed)
  lengths_B = S - np.arange(B) * (S - 1) // max(B, 2)
  real_BS = np.arange(S) < lengths_B[:, None]
  weights_BT = np.arange(T) < (T - np.arange(B) % T)[:, None]
  return {
    "encoder_tokens": jnp.asarray(draw.integers(0, 37, (B, S)), jnp.int32),
    "encoder_segments": jnp.asarray(real_BS, jnp.int32),
    "tokens": jnp.asarray(draw.integers(0, 37, (B, T)), jnp.int32),
    "targets": jnp.asarray(draw.integers(0, 37, (B, T)), jnp.int32),
    "weights": jnp.asarray(weights_BT, jnp.float32),
  }


@functools.cache
def predictor(style: str, **changes):
  """jitted (params, batch) -> logits (B, T, V)."""
  model = build(style, **changes)
  return jax.jit(lambda p, batch: model.apply({"params": p}, batch).logits())


@functools.cache
def decoding(style: str, **changes):
  """jitted begin(params, batch, length) and next(params, ...)."""
  model = build(style, **changes)

  def begin(params, batch, length):
    return model.apply({"params": params}, batch, length, method="begin")

  def following(params, tokens_BT, positions_BT, cache):
    return model.apply(
      {"params": params}, tokens_BT, positions_BT, cache, method="next"
    )

  return jax.jit(begin, static_argnums=2), jax.jit(following)
