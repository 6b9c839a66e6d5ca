"""Where the time of a device goes: its kernels, by kind, from a profile."""

import collections
import re
from collections.abc import Iterable
from pathlib import Path

import jax

# The first pattern that is found in a kernel's name is its kind.
KINDS = (
  ("attention", r"fmha|flash|sdpa|cudnn.*attn|attention"),
  ("copy", r"memcpy|memset|^copy|_copy|MemcpyD2D|Memset"),
  ("product", r"gemm|nvjet|cutlass|cublas|_xmma_|gemv|triton_dot|dot_"),
  ("sort", r"sort|radix"),
  ("scatter", r"scatter"),
  ("reduction", r"reduce|softmax"),
  ("transpose", r"transpose"),
  ("triton", r"triton"),
  ("elementwise", r"fusion|loop_|convert|add|multiply|select|broadcast"),
)


def kind_of(kernel: str) -> str:
  """The kind of a kernel by its name, or "other"."""
  for kind, pattern in KINDS:
    if re.search(pattern, kernel, re.IGNORECASE):
      return kind
  return "other"


def events(folder: Path) -> Iterable[tuple[str, float]]:
  """(kernel, nanoseconds) of all that ran on streams of a GPU."""
  (file,) = folder.rglob("*.xplane.pb")
  profile = jax.profiler.ProfileData.from_file(str(file))
  for plane in profile.planes:
    if not plane.name.startswith("/device:GPU"):
      continue
    for line in plane.lines:
      if line.name.startswith("Stream"):
        for event in line.events:
          yield event.name, event.duration_ns


def shares(found: Iterable[tuple[str, float]], most: int = 15) -> dict:
  """Shares of the time by kind, and the kernels that take most of it."""
  kinds, kernels = collections.Counter(), collections.Counter()
  calls = collections.Counter()
  for name, nanoseconds in found:
    kinds[kind_of(name)] += nanoseconds
    kernels[name] += nanoseconds
    calls[name] += 1
  total = sum(kinds.values())
  if not total:
    return {"milliseconds": 0.0}
  return {
    "milliseconds": total / 1e6,
    "by kind": {k: n / total for k, n in kinds.most_common()},
    "largest": [
      {
        "kernel": name[:120],
        "kind": kind_of(name),
        "share": n / total,
        "calls": calls[name],
      }
      for name, n in kernels.most_common(most)
    ],
  }
