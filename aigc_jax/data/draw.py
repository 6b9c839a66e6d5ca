"""Random numbers of examples: functions of seed, place and name, no state.

Whichever rows a host asks for, and whenever, a row's numbers are the same. So
masks and crops are as exact on resume, and on any number of hosts, as the
order of the examples is.
"""

import dataclasses
import math
import zlib

import numpy as np

from aigc_jax.data.mixture import scatter


@dataclasses.dataclass(frozen=True)
class Draw:
  """The numbers of some examples, (n,).

  places: of the examples in the order that the run takes them in: the numbers
  are others each time an example comes. records: which examples they are;
  `still` gives numbers that follow those, the same each time.
  """

  seed: int
  places: np.ndarray
  records: np.ndarray

  @property
  def still(self) -> "Draw":
    """Numbers that stay with an example over the epochs."""
    # Another seed, or a place and a record of one number would share theirs.
    seed = self.seed ^ zlib.crc32(b"still")
    return Draw(seed, self.records, self.records)

  def bits(self, name: str, *shape: int) -> np.ndarray:
    """(n, *shape) uint64, every bit as likely 0 as 1."""
    salt = scatter(np.array([self.seed], np.uint64))
    key = scatter(salt ^ np.uint64(zlib.crc32(name.encode())))
    rows = scatter(key + self.places.astype(np.uint64))
    at = np.arange(math.prod(shape), dtype=np.uint64)
    return scatter(rows[:, None] + at).reshape(-1, *shape)

  def uniform(self, name: str, *shape: int) -> np.ndarray:
    """(n, *shape) float32, from 0 to below 1."""
    # 24 bits are what float32 holds of a number just below 1.
    high = self.bits(name, *shape) >> np.uint64(40)
    return (high * 2.0**-24).astype(np.float32)

  def below(self, name: str, limit: int, *shape: int) -> np.ndarray:
    """(n, *shape) int64, from 0 to below `limit`, a number below 2**31."""
    high = self.bits(name, *shape) >> np.uint64(32)
    return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)

  def keys(self, name: str) -> np.ndarray:
    """(n, 2) uint32: a key of JAX for each example, for noise in the loss."""
    return self.bits(name, 1).view(np.uint32).reshape(-1, 2)
