"""Windows of text as sources and targets: span corruption and prefixes (T5).

arXiv:1910.10683, section 3.1.4 and 3.2.3. Both give what `pairs` gives: a
source and its padding, and a target moved on by a start token.
"""

import numpy as np

from aigc_jax.data.draw import Draw
from aigc_jax.data.spec import Array, Spec
from aigc_jax.errors import BadConfig


def span_counts(length: int, noise: float, mean_span: float) -> tuple[int, int]:
  """(noise tokens, spans) of so many tokens, rounded as T5 rounds them."""
  tokens = min(max(round(length * noise), 1), length - 1)
  spans = max(round(tokens / mean_span), 1)
  return tokens, min(spans, tokens, length - tokens)


def span_lengths(
  length: int, noise: float, mean_span: float
) -> tuple[int, int]:
  """Lengths of source and target of a window: (512, 114) of T5's 568."""
  tokens, spans = span_counts(length, noise, mean_span)
  return length - tokens + spans + 1, tokens + spans + 1


def _parts(total: int, parts: int, uniform: np.ndarray) -> np.ndarray:
  """A random way to write total as a sum of parts from 1, all as likely.

  uniform: total - 1 random numbers, whose smallest say where to cut.
  """
  cuts = np.sort(np.argsort(uniform, kind="stable")[: parts - 1]) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))


def noise_of(
  length: int, noise: float, mean_span: float, uniform: np.ndarray
) -> np.ndarray:
  """Which of `length` tokens are noise, (length,) bool.

  In T5's own code every row begins with what is kept and ends in noise, so
  that of up to 30 tokens always the last are hidden. Here what is kept before
  the first span and behind the last one may be nothing, and all arrangements of
  the spans are equally likely. uniform: 2 * length random numbers.
  """
  tokens, spans = span_counts(length, noise, mean_span)
  first, second = uniform[:length], uniform[length:]
  hidden = _parts(tokens, spans, first[: tokens - 1])
  kept = length - tokens
  around = _parts(kept + 2, spans + 1, second[: kept + 1])
  around[[0, -1]] -= 1
  sizes = np.empty(2 * spans + 1, np.int64)
  sizes[::2], sizes[1::2] = around, hidden
  return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)


def span_corruption(
  records,
  draw: Draw,
  *,
  eot: int,
  first_sentinel: int,
  noise: float = 0.15,
  mean_span: float = 3.0,
  start_token: int | None = None,
):
  """Spans of a window are hidden, and are what the target spells.

  In the source each span is one sentinel, first_sentinel, first_sentinel - 1,
  ...; in the target each sentinel is followed by its span. Both end with the
  end of text. Of a row with fewer real tokens fewer are hidden. start_token:
  that of the model, None for the end of text.
  """
  window_BT, count_B = records["window"], records["count"]
  length = window_BT.shape[1] - 1
  _check(length, first_sentinel, noise, mean_span)
  S, T = span_lengths(length, noise, mean_span)
  uniform = draw.uniform("spans", 2 * length)
  sources, targets = [], []
  for window, count, numbers in zip(window_BT, count_B, uniform, strict=True):
    n = int(count)
    hidden = np.zeros(n, bool)
    if n >= 2:
      hidden = noise_of(n, noise, mean_span, numbers)
    first = hidden & ~np.concatenate([[False], hidden[:-1]])
    names = (first_sentinel + 1 - np.cumsum(first)).astype(np.int32)
    tokens = window[:n]
    source = np.where(first, names, tokens)[~hidden | first]
    # Before the first token of each span stands its sentinel.
    target = np.stack([names, tokens], axis=1)
    target = target[np.stack([first, hidden], axis=1)]
    some = n >= 2
    sources.append(np.append(source, eot) if some else source[:0])
    targets.append(np.append(target, eot) if some else target[:0])
  return _batch(
    sources, targets, S, T, eot if start_token is None else start_token
  )


def span_spec(
  *,
  batch: int,
  length: int,
  first_sentinel: int,
  noise: float = 0.15,
  mean_span: float = 3.0,
) -> Spec:
  """What span corruption makes of windows."""
  _check(length, first_sentinel, noise, mean_span)
  return _spec(batch, *span_lengths(length, noise, mean_span))


def _check(length, first_sentinel, noise, mean_span) -> None:
  if not 0 < noise < 1:
    raise BadConfig(f"data.task.noise={noise}: expected above 0 and below 1")
  if not mean_span >= 1:
    raise BadConfig(f"data.task.mean_span={mean_span}: expected at least 1")
  if length < 2:
    raise BadConfig(f"data.length={length}: span corruption needs 2 tokens")
  _, spans = span_counts(length, noise, mean_span)
  if first_sentinel < spans - 1:
    raise BadConfig(
      f"data.task.first_sentinel={first_sentinel}: {spans} spans of a window "
      "have sentinels from there downwards"
    )


def prefix(records, draw: Draw, *, eot: int, start_token: int | None = None):
  """The start of a window is the source, the rest of it the target.

  Where it is cut is drawn, every place as likely. Neither has an end of text,
  but where the text ends. start_token: that of the model, None for the end of
  text.
  """
  window_BT, count_B = records["window"], records["count"]
  length = window_BT.shape[1] - 1
  # At least one token on each side of what is there.
  cut_B = 1 + np.floor(
    draw.uniform("cut", 1)[:, 0] * np.maximum(count_B - 1, 1)
  ).astype(np.int64)
  rows = list(zip(window_BT, count_B, cut_B, strict=True))
  sources = [row[: cut if n > 1 else 0] for row, n, cut in rows]
  targets = [row[cut:n] if n > 1 else row[:0] for row, n, cut in rows]
  start = eot if start_token is None else start_token
  return _batch(sources, targets, length, length, start)


def prefix_spec(*, batch: int, length: int) -> Spec:
  """What prefixes make of windows."""
  return _spec(batch, length, length)


def _spec(batch: int, S: int, T: int) -> Spec:
  found = {
    "encoder_tokens": ("BS", S, np.int32),
    "encoder_segments": ("BS", S, np.int32),
    "tokens": ("BT", T, np.int32),
    "targets": ("BT", T, np.int32),
    "weights": ("BT", T, np.float32),
  }
  return {
    name: Array(letters, (batch, n), np.dtype(kind))
    for name, (letters, n, kind) in found.items()
  }


def _batch(sources, targets, S: int, T: int, start: int):
  source, real = _padded(sources, S)
  target, weights = _padded(targets, T)
  moved = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
  moved[:, 0] = start
  return {
    "encoder_tokens": source,
    "encoder_segments": real.astype(np.int32),
    "tokens": moved,
    "targets": target,
    "weights": weights.astype(np.float32),
  }


def _padded(rows, length: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids (n, length) int32, whether each is real)."""
  ids = np.zeros((len(rows), length), np.int32)
  for out, row in zip(ids, rows, strict=True):
    out[: len(row)] = row
  sizes = np.array([len(row) for row in rows]).reshape(-1, 1)
  return ids, np.arange(length) < sizes
