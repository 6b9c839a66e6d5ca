"""Tiny decoders of every style, their sizes all different.

A transposed axis cannot hide where no two sizes are equal.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.models import COMPUTE, decoder
from aigc_jax.objectives import tokens
from aigc_jax.trainer.state import State
from tests import fresh

LLAMA = dict(
  vocab=37, layers=3, dim=24, heads=6, kv_heads=2, head_dim=8, mlp_dim=44,
  activation="silu", gated=True, norm="rms", norm_eps=1e-5, norm_offset=0.0,
  norm_bias=False, attention_bias=False, out_bias=False, mlp_bias=False,
  post_norm=False, qk_norm=False, position="rotary", position_length=0,
  rotary_base=1e4, rotary_local_base=0.0, rotary_scaling=None, windows=(),
  attention_scale=0.0, attention_softcap=0.0, logit_softcap=0.0,
  embed_scale=False, tied=False, init_std=0.0, dropout=0.0, dtype="float32",
  remat="none", unroll=1, kernel="xla",
)  # fmt: skip
GPT2 = LLAMA | dict(
  heads=4, kv_heads=4, head_dim=6, activation="gelu_tanh", gated=False,
  norm="layer", norm_bias=True, attention_bias=True, out_bias=True,
  mlp_bias=True, position="learned", position_length=19, tied=True,
  init_std=0.02,
)  # fmt: skip
STYLES = {
  "llama": LLAMA,
  "gpt2": GPT2,
  "mistral": LLAMA | dict(windows=(3,)),
  "qwen2": LLAMA | dict(attention_bias=True, tied=True),
  "qwen3": LLAMA | dict(qk_norm=True),
  "gemma": LLAMA | dict(
    layers=4, windows=(3, None), rotary_local_base=100.0, post_norm=True,
    norm_offset=1.0, activation="gelu_tanh", embed_scale=True, tied=True,
    attention_softcap=5.0, logit_softcap=7.0, qk_norm=True,
    attention_scale=0.3,
  ),
  "llama3": LLAMA | dict(
    rotary_scaling=dict(
      kind="llama3", factor=8.0, low_factor=1.0, high_factor=4.0,
      original_length=16,
    ),
  ),
  "sinusoidal": LLAMA | dict(
    position="sinusoidal", activation="relu2", gated=False,
  ),
  "none": LLAMA | dict(position="none", activation="gelu", unroll=2),
  "olmo": LLAMA | dict(
    pre_norm=False, post_norm=True, qk_norm=True, qk_norm_joint=True,
    embed_multiplier=3.0, residual_multiplier=0.4, logit_multiplier=0.2,
  ),
  "neox": GPT2 | dict(
    position="rotary", rotary_dim=2, parallel=True, tied=False,
    rotary_scaling=dict(kind="linear", factor=2.0, attention_factor=1.3),
  ),
  "longrope": LLAMA | dict(
    rotary_scaling=dict(
      kind="longrope", short=(1.0, 1.5, 2.0, 3.0), long=(2.0, 3.0, 5.0, 9.0),
      original_length=4, attention_factor=1.2,
    ),
  ),
  "phi": LLAMA | dict(
    parallel=True, shared_norm=True, head_bias=True, rotary_dim=4,
    rotary_layers=(True, False), windows=(3, None, None),
    rotary_local_base=100.0, layers=4,
  ),
}  # fmt: skip


def put(config, keywords, **more) -> None:
  """Sets keywords of a model in a config, each in its section."""
  for key, value in (dict(keywords) | more).items():
    config["compute" if key in COMPUTE else "model"][key] = value


def build(style: str, **changes):
  return decoder(**STYLES[style] | changes)


@functools.cache
def params_of(style: str):
  """Parameters of a style; the fields that do not shape them may change."""
  model = build(style)
  batch = {"tokens": jnp.zeros((1, 2), jnp.int32)}
  return jax.tree.map(perturbed, fresh.variables(model, batch)["params"])


def perturbed(x):
  """Away from zeros and ones, which would hide a missing bias or scale."""
  noise = np.random.default_rng(x.size).normal(size=x.shape)
  return x + 0.1 * noise.astype(np.float32)


@functools.cache
def predictor(style: str, **changes):
  """jitted (params, batch) -> logits (B, T, V)."""
  model = build(style, **changes)
  return jax.jit(lambda p, batch: model.apply({"params": p}, batch).logits())


def logits(style: str, tokens_BT, /, **changes):
  return predictor(style, **changes)(params_of(style), {"tokens": tokens_BT})


def some_tokens(B: int, T: int, seed: int = 0, vocab: int = 37):
  draw = np.random.default_rng(seed).integers(0, vocab, (B, T))
  return jnp.asarray(draw, jnp.int32)


def ragged_batch(B: int, T: int, seed: int = 0):
  """A batch whose rows count very differently."""
  weights = jnp.arange(T)[None] < jnp.arange(1, B + 1)[:, None] * T // B
  return dict(
    tokens=some_tokens(B, T, seed),
    targets=some_tokens(B, T, seed + 1),
    weights=weights.astype(jnp.float32),
  )


@functools.cache
def loss_and_grad(style: str, **changes):
  """(loss sum, gradients) on one ragged batch; computed once a session."""
  score, batch = score_of(build(style, **changes)), ragged_batch(2, 7)
  f = jax.value_and_grad(lambda p: score(p, batch, None)["loss"].sum)
  return jax.jit(f)(params_of(style))


def score_of(model, z_loss: float = 1e-3, chunk: int = 16):
  """score(params, batch, key) as the trainer builds it."""

  def score(params, batch, key):
    rngs = {} if key is None else {"dropout": key}

    def predict(batch):
      return model.apply({"params": params}, batch, rngs=rngs)

    return tokens(predict, batch, z_loss=z_loss, chunk=chunk)

  return score


def distance(a, b) -> float:
  """The largest absolute difference between two trees."""
  parts = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)
  return max(jax.tree.leaves(parts))


def state_of(params, **fields) -> State:
  """A state that is evaluated: no step will be taken from it."""
  rest = dict.fromkeys(("step", "seed", "skipped", "opt_state"))
  return State(params=params, **rest | fields)
