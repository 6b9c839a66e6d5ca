"""Memory that a step on a CPU frees is kept for the next one.

A step takes its temporary memory in one piece and frees it at its end. Given
back to the system, each page of it would be asked for and zeroed again in the
next step: 260,000 page faults and a fifth of the time for a model of 11M
parameters (experiments/speed). What it costs is memory: about one such piece.

It comes in pages of 2 MiB where the system has them, which is a twentieth of
the time of that model with products of bfloat16.
"""

import ctypes
import glob
import os
import pathlib
from collections.abc import Mapping

# Parameters of mallopt (https://man7.org/linux/man-pages/man3/mallopt.3.html).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
HUGE = 2**21  # bytes of a large page
MADV_HUGEPAGE = 14  # https://man7.org/linux/man-pages/man2/madvise.2.html
OVERCOMMIT = pathlib.Path("/proc/sys/vm/overcommit_memory")
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/kfd", "/dev/vfio/*")


def keep_freed(environ: Mapping[str, str] = os.environ) -> bool:
  """Keeps what is freed, where steps run on a CPU; whether it does.

  To be called before the first thread starts: only the first arena holds pieces
  of any size. Settings of the user's own (MALLOC_..., GLIBC_TUNABLES) stand.
  """
  own = any(k.startswith("MALLOC_") for k in environ)
  if own or "GLIBC_TUNABLES" in environ or not _on_cpu(environ):
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "mallopt"):  # another C library
    return False
  settings = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, ARENA_MAX: 1}
  kept = all([libc.mallopt(key, value) == 1 for key, value in settings.items()])
  if kept:
    _in_huge_pages(libc)
  return kept


def _in_huge_pages(libc: ctypes.CDLL) -> None:
  """Has what is allocated from now on in large pages, if the system gives them.

  Asked for by addresses, so half of the memory's worth of them is taken in one
  piece and freed again, which here means kept: no page of it is touched. Where
  a limit does not allow that, or the system counts addresses as memory
  (https://docs.kernel.org/mm/overcommit-accounting.html), pages are small, as
  they would have been.
  """
  if _addresses_count():
    return
  libc.malloc.restype = ctypes.c_void_p
  size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
  start = libc.malloc(ctypes.c_size_t(size))
  if start is None:
    return
  rest = -start % HUGE
  libc.madvise(
    ctypes.c_void_p(start + rest), ctypes.c_size_t(size - rest), MADV_HUGEPAGE
  )
  libc.free(ctypes.c_void_p(start))


def _addresses_count() -> bool:
  try:
    return OVERCOMMIT.read_text().strip() == "2"
  except OSError:  # a system that does not tell
    return True


def _on_cpu(environ: Mapping[str, str]) -> bool:
  """Whether JAX will run on a CPU, as far as that is known without it."""
  asked = environ.get("JAX_PLATFORMS", "")
  if asked:
    return asked == "cpu"
  return not any(glob.glob(pattern) for pattern in ACCELERATORS)
