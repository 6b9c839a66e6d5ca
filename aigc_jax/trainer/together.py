"""How several processes take one decision; each must call these alike."""

import contextlib
import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from aigc_jax.errors import Refusal


def from_first(value: int) -> int:
  """The number process 0 gives; every process must call this."""
  if jax.process_count() == 1:
    return int(value)
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def most(value: int) -> int:
  """The largest number any process gives; every process must call this."""
  if jax.process_count() == 1:
    return int(value)
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def same(text: str) -> bool:
  """Whether all processes give the same text; every one must call this."""
  if jax.process_count() == 1:
    return True
  words = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
  rows = np.asarray(multihost_utils.process_allgather(words))
  return bool((rows == rows[0]).all())


@contextlib.contextmanager
def all_or_none():
  """What one process refuses in this block, all refuse; every one must enter.

  Without that the others would wait for it in their next common step. The
  block itself must have none.
  """
  refusal: Refusal | None = None
  try:
    yield
  except Refusal as error:
    refusal = error
  code = most(refusal.code if refusal else 0)
  if refusal:
    raise refusal
  if code:
    kinds = {kind.code: kind for kind in Refusal.__subclasses__()}
    raise kinds[code]("another process refused; it says why")
