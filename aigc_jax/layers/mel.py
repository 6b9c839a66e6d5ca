"""Log-mel spectrograms on the device, those that Whisper hears.

arXiv:2212.04356, section 2.2: windows of 25 ms every 10 ms at 16 kHz, the mel
scale of M. Slaney's Auditory Toolbox with triangles of equal area, logarithms
of base ten, and of each row only the 8 decades below its loudest place.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

RATE = 16_000  # samples a second
WINDOW, HOP = 400, 160  # samples
LEAST = 1e-10  # power
DECADES = 8.0


def log_mel(audio_BA: jax.Array, lengths_B: jax.Array, bins: int) -> jax.Array:
  """(B, A / HOP, bins) float32 of 16-bit samples (B, A), A in whole HOPs.

  What lies behind the `lengths` is silence, whatever is there: sound is padded,
  not its spectrogram. Frames are centred on their samples, and sound is
  mirrored at both ends. Within 2e-4 of transformers' WhisperFeatureExtractor,
  and 1e-6 on average (tests/layers/test_mel.py).
  """
  A = audio_BA.shape[1]
  real_BA = jnp.arange(A) < lengths_B[:, None]
  x_BA = jnp.where(real_BA, audio_BA, 0).astype(jnp.float32) / 32768.0
  # As products, which every device has fast and cuts over a batch; a Fourier
  # transform is neither. Exact float32: the quiet bands are differences.
  product = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  waves_BTF = product("BTX,XF->BTF", frames(x_BA), jnp.asarray(waves()))
  real_BTF, imaginary_BTF = jnp.split(waves_BTF, 2, axis=-1)
  power_BTF = jnp.square(real_BTF) + jnp.square(imaginary_BTF)
  mel_BTC = product("BTF,FC->BTC", power_BTF, jnp.asarray(filters(bins)))
  log_BTC = jnp.log10(jnp.maximum(mel_BTC, LEAST))
  loudest_B11 = jnp.max(log_BTC, axis=(1, 2), keepdims=True)
  return (jnp.maximum(log_BTC, loudest_B11 - DECADES) + 4.0) / 4.0


def hidden(
  x_BTC: jax.Array, lengths_B: jax.Array, masks_BM4: jax.Array
) -> jax.Array:
  """Spectrograms whose rectangles are of their own mean (arXiv:1904.08779).

  A rectangle is its first frame, how many frames, its first band, how many
  bands. The mean is over the frames of an utterance of so many samples, not
  over the silence behind it.
  """
  T, C = x_BTC.shape[1:]
  frames_B1 = -(lengths_B[:, None] // -HOP)
  real_BT1 = (jnp.arange(T) < frames_B1)[..., None]
  sum_B11 = jnp.sum(jnp.where(real_BT1, x_BTC, 0.0), (1, 2), keepdims=True)
  mean_B11 = sum_B11 / (C * jnp.maximum(frames_B1, 1))[..., None]
  first, long, low, high = jnp.moveaxis(masks_BM4[..., None], 2, 0)
  in_BMT = (jnp.arange(T) >= first) & (jnp.arange(T) < first + long)
  in_BMC = (jnp.arange(C) >= low) & (jnp.arange(C) < low + high)
  in_BTC = jnp.any(in_BMT[..., None] & in_BMC[:, :, None], axis=1)
  return jnp.where(in_BTC, mean_B11, x_BTC)


def frames(x_BA: jax.Array) -> jax.Array:
  """(B, A / HOP, WINDOW): windows around every HOP-th sample."""
  T = x_BA.shape[1] // HOP
  around = ((0, 0), (WINDOW // 2, WINDOW // 2))
  x_BA = jnp.pad(x_BA, around, mode="reflect")
  whole = -(-x_BA.shape[1] // HOP)  # hops, the last filled up
  x_BA = jnp.pad(x_BA, ((0, 0), (0, whole * HOP - x_BA.shape[1])))
  hops_BTX = x_BA.reshape(len(x_BA), whole, HOP)
  # A window is two hops and the half of a third.
  parts = [hops_BTX[:, i : i + T] for i in range(-(-WINDOW // HOP))]
  return jnp.concatenate(parts, axis=-1)[..., :WINDOW]


@functools.cache
def waves() -> np.ndarray:
  """(WINDOW, 2 F) float32: cosines, then sines of F rates, by Hann's window."""
  at = np.arange(WINDOW)
  hann = 0.5 - 0.5 * np.cos(2 * math.pi * at / WINDOW)
  angle = 2 * math.pi * np.outer(at, np.arange(WINDOW // 2 + 1)) / WINDOW
  both = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
  return (hann[:, None] * both).astype(np.float32)


@functools.cache
def filters(bins: int) -> np.ndarray:
  """(F, bins) float32: triangles of equal area, evenly spaced in mel."""
  rates = np.arange(WINDOW // 2 + 1) * (RATE / WINDOW)
  edges = hertz(np.linspace(0.0, mel(RATE / 2), bins + 2))
  low, middle, high = edges[:-2], edges[1:-1], edges[2:]
  up = (rates[:, None] - low) / (middle - low)
  down = (high - rates[:, None]) / (high - middle)
  triangles = np.maximum(0.0, np.minimum(up, down))
  return (triangles * (2.0 / (high - low))).astype(np.float32)


# Below 1,000 Hz a mel is 200 / 3 Hz, above 27 of them are a factor of 6.4.
LINEAR, CORNER, STEP = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0


def mel(rate: float) -> float:
  """Of a rate in Hz."""
  if rate < CORNER:
    return rate / LINEAR
  return CORNER / LINEAR + math.log(rate / CORNER) / STEP


def hertz(mels: np.ndarray) -> np.ndarray:
  """Back from mel."""
  corner = CORNER / LINEAR
  high = CORNER * np.exp(STEP * (mels - corner))
  return np.where(mels < corner, mels * LINEAR, high)
