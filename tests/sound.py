"""Tiny models that hear, their sizes all different, and their batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.models import MODELS
from tests import fresh
from tests.diffusion import keys_of
from tests.tiny import perturbed

SAMPLES = 3200  # of a row: 0.2 seconds
WHISPER = dict(
  kind="whisper", vocab=37, seconds=0.2, bins=20, encoder_layers=3,
  decoder_layers=2, dim=24, heads=4, mlp_dim=44, activation="gelu",
  position_length=19, start_token=None, embed_std=None, init_std=None,
  dropout=0.0, dtype="float32", remat="none", unroll=1, kernel="xla",
)  # fmt: skip
CTC = dict(
  kind="ctc", vocab=37, blank=36, bins=20, stride=2, layers=3, dim=24, heads=4,
  mlp_dim=44, activation="gelu", init_std=None, dropout=0.0, dtype="float32",
  remat="none", unroll=1, kernel="xla",
)  # fmt: skip
TTS = dict(
  kind="tts", vocab=37, bins=20, speakers=5, patch=3, text_layers=2, layers=3,
  dim=24, heads=4, mlp_dim=44, activation="gelu", init_std=None, dropout=0.0,
  dtype="float32", remat="none", unroll=1, kernel="xla",
)  # fmt: skip
STYLES = {"whisper": WHISPER, "ctc": CTC, "tts": TTS}
HEARD = dict(audio="B.", audio_lengths="B")
LETTERS = HEARD | dict(masks="B..")
SPOKEN = HEARD | dict(
  speakers="B", draw="B.", mel="B..", mel_lengths="B", time="B"
)


def batch_of(B: int = 2, T: int = 7, seed: int = 0) -> dict[str, jax.Array]:
  """Noise and hums of different lengths, texts of different lengths."""
  draw = np.random.default_rng(seed)
  lengths_B = SAMPLES - 400 * (np.arange(B) % 4)
  real_BA = np.arange(SAMPLES) < lengths_B[:, None]
  hum_BA = np.sin(np.arange(SAMPLES) * draw.uniform(0.02, 1.5, (B, 1)))
  audio_BA = 8000 * hum_BA + 1000 * draw.normal(size=(B, SAMPLES))
  weights_BT = np.arange(T) < (T - np.arange(B) % 3)[:, None]
  ids = draw.integers(0, 36, (2, B, T)).astype(np.int32)
  return {
    "audio": jnp.asarray(np.where(real_BA, audio_BA, 0), jnp.int16),
    "audio_lengths": jnp.asarray(lengths_B, jnp.int32),
    "tokens": jnp.asarray(ids[0]),
    "targets": jnp.asarray(ids[1]),
    "weights": jnp.asarray(weights_BT, jnp.float32),
  }


def masked_batch(B: int = 2, T: int = 7, seed: int = 0) -> dict[str, jax.Array]:
  """The same, with a part of each spectrogram hidden, of none the same."""
  masks = np.zeros((B, 2, 4), np.int32)
  masks[:, 0, 0] = np.arange(B) % 5
  masks[:, 0, 1:] = (6, 0, 20)
  masks[:, 1] = (0, 20, 4, 3)
  return batch_of(B, T, seed) | {"masks": jnp.asarray(masks)}


def spoken_batch(B: int = 2, T: int = 7, seed: int = 0) -> dict[str, jax.Array]:
  """The same, of speakers, with keys; a row is told nothing.

  Beside that what the objective makes for the model itself.
  """
  batch, draw = batch_of(B, T, seed), np.random.default_rng(seed)
  batch["weights"] = batch["weights"].at[-1].set(0.0)
  mel = draw.normal(size=(B, 20, 20))
  return batch | dict(
    speakers=jnp.asarray(draw.integers(0, 6, B), jnp.int32),
    draw=keys_of(B, seed),
    mel=jnp.asarray(mel, jnp.float32),
    mel_lengths=jnp.asarray(20 - 3 * (np.arange(B) % 4), jnp.int32),
    time=jnp.asarray(draw.uniform(size=B), jnp.float32),
  )


def build(style: str, **changes) -> nn.Module:
  keys = STYLES[style] | changes
  return MODELS[keys.pop("kind")](**keys)


@functools.cache
def params_of(style: str):
  """Parameters of a style; the fields that do not shape them may change."""
  model = build(style)
  found = fresh.variables(model, model.example())
  return jax.tree.map(perturbed, found["params"])


@functools.cache
def predictor(style: str, **changes):
  """jitted (params, batch) -> what the model says."""
  model = build(style, **changes)
  return jax.jit(lambda p, batch: model.apply({"params": p}, batch))
