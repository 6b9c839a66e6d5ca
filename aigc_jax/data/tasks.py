"""What records ask the model to do: records in, a batch out.

A task is a function (records, draw, **options) -> batch of whole batches of
records, beside which stands what its batch is (`spec`, from sizes alone). Of
the options, those that a window's text decides (`eot`, `segments`, `tokenizer`)
are given by the data; the others are the keys of config.data.task. A new task
is two functions and one line in TASKS.

Records of text are windows: "window" (n, T + 1) int32, of which the first
"count" (n,) + 1 tokens are real and the rest is padding.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from aigc_jax.data import denoising, masking
from aigc_jax.data.draw import Draw
from aigc_jax.data.spec import Array, Spec
from aigc_jax.signature import check_call, keys_of, kind_of

Records = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
  """make(records, draw, **options) -> batch; spec(**sizes, **options) -> Spec.

  exact: whether each token of a text is a target just once, so that what a
  held-out set counts is known beforehand. special: words that a tokenizer
  trained here has for it. check(tokenizer, model, **options): refuses, as
  BadConfig, a tokenizer that lacks what the task needs, or a config.model that
  has too few ids for it. pairs(**options): whether records have an "other"
  window.
  """

  make: Callable[..., Batch]
  spec: Callable[..., Spec]
  exact: bool = False
  special: tuple[str, ...] = ()
  check: Callable[..., None] = lambda tokenizer, model, **options: None
  pairs: Callable[..., bool] = lambda **options: False


def next_token(
  records: Records, draw: Draw, *, eot: int, segments: bool
) -> Batch:
  """Every token is predicted from those before it.

  tokens, targets (B, T) int32: the window without its last, its first token;
  weights (B, T) float32: 1 where the target is real, 0 in the padding. With
  `segments`: segments (B, T) int32 from 1, one more at each end of text, which
  begins the next document; positions (B, T) int32, from 0 in each segment and
  in each row. Padding has segment 0.
  """
  window_BT, count_B = records["window"], records["count"]
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


def _next_token_spec(*, batch: int, length: int, segments: bool) -> Spec:
  kinds = dict(tokens=np.int32, targets=np.int32, weights=np.float32)
  if segments:
    kinds |= dict(positions=np.int32, segments=np.int32)
  return {
    name: Array("BT", (batch, length), np.dtype(kind))
    for name, kind in kinds.items()
  }


TASKS = {
  "next_token": Task(next_token, _next_token_spec, exact=True),
  "masked": Task(
    masking.masked,
    masking.masked_spec,
    special=masking.SPECIAL,
    check=masking.check,
    pairs=lambda *, next_sentence=False, **_: next_sentence,
  ),
  "span_corruption": Task(denoising.span_corruption, denoising.span_spec),
  "prefix": Task(denoising.prefix, denoising.prefix_spec),
}


def task_of(task: Mapping, given: tuple[str, ...] = ()) -> tuple[Task, dict]:
  """(task, its options) of config.data.task.

  given: options that the data gives. Raises BadConfig for an unknown kind or
  key, or one of a wrong type.
  """
  found, options = kind_of("data.task", task, TASKS)
  check_call(found.make, "data.task", options, *given)
  return found, options


def made_by(task: Task, options: Mapping, **given) -> Callable:
  """The task's function of (records, draw), with its options bound.

  Of what is `given` it gets what it asks for.
  """
  wanted = {k: v for k, v in given.items() if k in keys_of(task.make)}
  return lambda records, draw: task.make(records, draw, **options, **wanted)


def spec_of(task: Task, options: Mapping, **given) -> Spec:
  """What its batch is, of the sizes and options it asks for."""
  both = {**options, **given}
  return task.spec(**{k: v for k, v in both.items() if k in keys_of(task.spec)})
