"""What a machine can do at best, and the memory that is in use."""

import math
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp


def ceilings(dtype) -> dict[str, float]:
  """FLOP/s of a large matrix product in `dtype`, bytes/s of a copy; 1 device.

  On random data: zeros draw less power and flatter a GPU by a tenth.
  """
  on_cpu = jax.default_backend() == "cpu"
  size, length = (2048, 2**25) if on_cpu else (8192, 2**29)
  x, y = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
  product = jax.jit(
    lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32)
  )
  rate = 2 * size**3 / seconds(product, x, y)
  long = jax.random.normal(jax.random.key(1), (length,), jnp.float32)
  copy = jax.jit(lambda x: -x)
  moved = 2 * long.size * long.dtype.itemsize
  return {"matmul": rate, "copy": moved / seconds(copy, long)}


def seconds(f: Callable, *args, calls: int = 10, repeats: int = 5) -> float:
  """Seconds of one call: the median of `repeats` means."""
  jax.block_until_ready(f(*args))
  means = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      out = f(*args)
    jax.block_until_ready(out)
    means.append((time.perf_counter() - start) / calls)
  return statistics.median(means)


def reset_peak() -> bool:
  """Starts the process's mark of peak memory anew, where the system can."""
  try:
    Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    return False
  return True


def peak_bytes(device: jax.Device) -> int:
  """The most memory in use: the device's; on a CPU the process's."""
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  try:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
  except (OSError, TypeError):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def peak_of(device: jax.Device, while_stepping: bool) -> str:
  """What and when `peak_bytes` is about."""
  if "peak_bytes_in_use" in (device.memory_stats() or {}):
    return "the device, since the process began"
  when = "in the timed steps" if while_stepping else "since it began"
  return f"the whole process, {when}"


def free_bytes(device: jax.Device) -> int:
  """Memory that is not in use yet; 0 where that is not known."""
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  try:
    found = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s*(\d+) kB", found)[1]) * 1024
  except (OSError, TypeError):
    return 0


def mappings_left() -> float:
  """How many more pieces of memory this process may map; inf if not known.

  A program compiled for a CPU takes about 1,000 to 2,000 of the system's limit
  (https://docs.kernel.org/admin-guide/sysctl/vm.html#max-map-count), and the
  compiler ends the process where it is reached.
  """
  try:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    with open("/proc/self/maps") as lines:
      return limit - sum(1 for _ in lines)
  except OSError:
    return math.inf
