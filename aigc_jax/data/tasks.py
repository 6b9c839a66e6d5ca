"""What a window of tokens asks the model to do.

A task is a function of whole windows: (window_BT, count_B, *, eot, segments)
-> batch. `window_BT` has length + 1 tokens a row, of which the first
`count_B` + 1 are real and the rest padding. A new task (masked, span
corruption, prefix) is one function and one line in TASKS.
"""

import numpy as np

from aigc_jax.errors import choose


def next_token(
  window_BT: np.ndarray, count_B: np.ndarray, *, eot: int, segments: bool
) -> dict[str, np.ndarray]:
  """Every token is predicted from those before it.

  tokens, targets (B, T) int32: the window without its last, its first token;
  weights (B, T) float32: 1 where the target is real, 0 in the padding. With
  `segments`: segments (B, T) int32 from 1, one more at each end of text, which
  begins the next document; positions (B, T) int32, from 0 in each segment and
  in each row. Padding has segment 0.
  """
  tokens = np.ascontiguousarray(window_BT[:, :-1])
  real = np.arange(tokens.shape[1]) < count_B[:, None]
  batch = {
    "tokens": tokens,
    "targets": np.ascontiguousarray(window_BT[:, 1:]),
    "weights": real.astype(np.float32),
  }
  if segments:
    starts = tokens == eot
    starts[:, 0] = True  # a document that goes on begins anew in its row
    at = np.broadcast_to(
      np.arange(tokens.shape[1], dtype=np.int32), tokens.shape
    )
    last = np.maximum.accumulate(np.where(starts, at, 0), axis=1)
    number = np.cumsum(starts, axis=1, dtype=np.int32)
    batch["positions"] = (at - last).astype(np.int32)
    batch["segments"] = np.where(real, number, 0).astype(np.int32)
  return batch


TASKS = {"next_token": next_token}


def make_task(task: dict):
  """The function for `data.task`: its kind, with its other keys bound.

  Raises BadConfig for an unknown kind.
  """
  options = dict(task)
  function = choose(options.pop("kind", None), TASKS, "task")
  if options:
    return lambda *args, **kw: function(*args, **options, **kw)
  return function
