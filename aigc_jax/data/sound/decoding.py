"""Sound from bytes, strictly: what is refused, and how odd files are read.

Read are WAV (whole numbers of 8, 16, 24 or 32 bits, fractions of 32 or 64) and,
with the extra [sound], FLAC. Refused (`Unusable`): what is damaged or cut
short, even in part; what has no sound in it, or nothing but zeros; what is
packed in another way. Stated policies: several channels become their mean,
where they may be mixed; other rates become RATE, by the polyphase filter of
scipy.signal.resample_poly; finer numbers are rounded to 16 bits; sound that
runs into the end of its scale is kept, and told.
"""

import io
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aigc_jax.errors import BadConfig

RATE = 16_000  # samples a second of all that is made here
RATES = range(1_000, 768_001)  # that a file may have
MOST_UNLIKE = 50_000  # steps of a rate and RATE until they meet
LARGEST_FILE = 1 << 30  # bytes
LONGEST = 3600  # seconds of one utterance
MOST = 1 << 28  # samples of all its channels: 2 GB while they are read
CLIPPED = 1e-3  # share of samples at the end of the scale that is told
CHANNELS = ("mix", "refuse")  # what becomes of several

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
TAGS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "ADPCM", 85: "MP3"}
KINDS = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}
MARKS = {  # how files begin that are sound of other kinds
  b"OggS": "an Ogg file",
  b"ID3": "an MP3 file",
  b"\xff\xfb": "an MP3 file",
  b"\xff\xf3": "an MP3 file",
  b"FORM": "an AIFF file",
  b"RF64": "a WAV file beyond 4 GB",
  b"RIFX": "a WAV file of the other byte order",
}
STREAMED = "its length was never written, as of a stream"
CONVERT = "convert it: ffmpeg -i FILE -ar 16000 -ac 1 FILE.wav"


class Unusable(Exception):
  """Why bytes are no sound that could be used, in a few words."""


class Recording(NamedTuple):
  """What a file holds: samples in units of 16 bits, but maybe finer."""

  samples_NC: np.ndarray  # float64, of N moments and C channels
  rate: int
  clipped: float  # share of samples at the end of the scale


def decoded(data: bytes, channels: str) -> tuple[np.ndarray, list[str]]:
  """(samples (N,) int16 at RATE, what has to be told of them).

  channels: "mix" or "refuse". Raises Unusable, and BadConfig where FLAC cannot
  be read here.
  """
  if len(data) > LARGEST_FILE:
    raise Unusable(f"larger than {LARGEST_FILE >> 20} MB")
  found, notes = _read(data), []
  N, C = found.samples_NC.shape
  if not N:
    raise Unusable("no samples")
  if not found.samples_NC.any():
    raise Unusable("silent, nothing but zeros")
  if C > 1 and channels == "refuse":
    raise Unusable("more than one channel (data.channels='mix' takes the mean)")
  if C > 1:
    notes.append(f"{C} channels, mixed")
  if found.rate != RATE:
    notes.append(f"{found.rate} Hz, resampled to {RATE}")
  if found.clipped > CLIPPED:
    notes.append(f"clipped, over {CLIPPED:.1%} at the end of the scale")
  mixed_N = found.samples_NC.mean(axis=1) if C > 1 else found.samples_NC[:, 0]
  return _whole(resampled(mixed_N, found.rate)), notes


def resampled(samples_N: np.ndarray, rate: int) -> np.ndarray:
  """The same sound at RATE; itself where it has that."""
  if rate == RATE:
    return samples_N
  from scipy import signal  # slow to import, and rarely needed

  common = math.gcd(rate, RATE)
  return signal.resample_poly(samples_N, RATE // common, rate // common)


def _whole(samples_N: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(samples_N), -(1 << 15), (1 << 15) - 1).astype("<i2")


def _read(data: bytes) -> Recording:
  if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
    return _wav(data)
  if data[:4] == b"fLaC":
    return _flac(data)
  if not data:
    raise Unusable("an empty file")
  for mark, what in MARKS.items():
    if data.startswith(mark):
      raise Unusable(f"{what}: {CONVERT}")
  raise Unusable("neither WAV nor FLAC")


def _wav(data: bytes) -> Recording:
  kind = None
  for name, size, body in _chunks(data):
    if name == b"fmt ":
      kind = _kind(data[body : body + size])
    elif name == b"data":
      if kind is None:
        raise Unusable("damaged: sound before its format")
      return _samples(data[body : body + size], *kind)
  raise Unusable("damaged: a WAV file without sound in it")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """(name, bytes, where they begin) of the parts of a RIFF file."""
  at = 12
  while at + 8 <= len(data):
    name, size = struct.unpack_from("<4sI", data, at)
    body = at + 8
    if name == b"data" and size >= 0xFFFFFF00:
      raise Unusable(f"{STREAMED}: {CONVERT}")
    if body + size > len(data):
      raise Unusable(
        f"truncated: {len(data) - body:,} bytes of {size:,} are there"
      )
    yield name, size, body
    at = body + size + size % 2  # parts begin at even places


def _kind(head: bytes) -> tuple[int, int, int, int]:
  """(tag, bits, channels, rate) of a format that can be read."""
  if len(head) < 16:
    raise Unusable("damaged: its format is cut short")
  tag, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", head)
  if tag == EXTENSIBLE and len(head) >= 40:
    (tag,) = struct.unpack_from("<H", head, 24)
  if (tag, bits) not in KINDS:
    what = TAGS.get(tag, f"format {tag}")
    raise Unusable(f"a WAV file of {what} in {bits} bits: {CONVERT}")
  _check_rate(rate)
  if not channels or width != channels * bits // 8:
    raise Unusable(
      f"damaged: {channels} channels of {bits} bits in {width} bytes, {rate} Hz"
    )
  return tag, bits, channels, rate


def _check_rate(rate: int) -> None:
  """Raises Unusable for a rate that no recorder has.

  The filter between two rates that have nothing in common is as long as they
  are large: of 767,999 Hz it would take half a minute, for any sound.
  """
  common = math.gcd(rate, RATE)
  if rate not in RATES or max(rate, RATE) // common > MOST_UNLIKE:
    raise Unusable(f"damaged, or at an odd rate, {rate} Hz: {CONVERT}")


def _samples(
  data: bytes, tag: int, bits: int, channels: int, rate: int
) -> Recording:
  if len(data) % (channels * bits // 8):
    raise Unusable("damaged: its sound ends in the middle of a sample")
  _check_size(len(data) // (channels * bits // 8), channels, rate)
  if tag == FLOAT:
    with np.errstate(invalid="ignore"):  # told below
      raw = np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if not np.isfinite(raw).all():
      raise Unusable("numbers that are not finite")
    clipped = np.abs(raw) >= 1.0
    scaled = raw * 32768.0
  else:
    raw = _integers(data, bits)
    top = 1 << (bits - 1)
    clipped = (raw == top - 1) | (raw == -top)
    scaled = raw * (32768.0 / top)
  share = float(clipped.mean()) if raw.size else 0.0
  return Recording(scaled.reshape(-1, channels), rate, share)


def _check_size(frames: int, channels: int, rate: int) -> None:
  """Raises Unusable before memory is taken for what a few bytes may claim."""
  if frames > LONGEST * rate:
    raise Unusable(f"longer than {LONGEST} seconds")
  if frames * channels > MOST:
    raise Unusable(f"more than {MOST:,} samples")


def _integers(data: bytes, bits: int) -> np.ndarray:
  if bits == 8:  # the only width without a sign
    return np.frombuffer(data, np.uint8).astype(np.int64) - 128
  if bits == 24:
    parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int64)
    found = parts @ np.array([1, 1 << 8, 1 << 16])
    return found - ((found >> 23) << 24)
  return np.frombuffer(data, f"<i{bits // 8}").astype(np.int64)


def soundfile():
  """The library for FLAC, which comes with the extra [sound]."""
  try:
    import soundfile
  except (ImportError, OSError) as e:  # OSError: libsndfile is not there
    raise BadConfig(
      "FLAC needs soundfile: pip install 'aigc_jax[sound]', or write the files "
      "as WAV"
    ) from e
  return soundfile


UNTOLD = 1 << 36  # frames: what FLAC cannot say is not known
BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


def _flac(data: bytes) -> Recording:
  library = soundfile()
  try:
    with library.SoundFile(io.BytesIO(data)) as file:
      frames, rate, bits = file.frames, file.samplerate, BITS[file.subtype]
      if frames >= UNTOLD:
        raise Unusable(f"{STREAMED}: {CONVERT}")
      _check_rate(rate)
      _check_size(frames, file.channels, rate)
      raw = file.read(dtype="int32", always_2d=True)
  except (Unusable, MemoryError):
    raise
  except Exception as e:  # parsers of files of others raise anything
    raise Unusable("a damaged FLAC file") from e
  if len(raw) != frames:
    raise Unusable(f"truncated: {len(raw):,} samples of {frames:,} are there")
  # The library puts all widths at the upper end of 32 bits.
  raw = raw.astype(np.int64) >> (32 - bits)
  top = 1 << (bits - 1)
  clipped = (raw == top - 1) | (raw == -top)
  share = float(clipped.mean()) if raw.size else 0.0
  return Recording(raw * (32768.0 / top), rate, share)


def wav(samples_N: np.ndarray, rate: int = RATE) -> bytes:
  """Samples (N,) int16 of one channel as the bytes of a WAV file."""
  body = np.ascontiguousarray(samples_N, "<i2").tobytes()
  head = struct.pack("<HHIIHH", PCM, 1, rate, 2 * rate, 2, 16)
  parts = b"fmt " + struct.pack("<I", len(head)) + head
  parts += b"data" + struct.pack("<I", len(body)) + body
  return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts
