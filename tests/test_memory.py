"""What a step on a CPU frees stays with the process."""

import os
import pathlib
import subprocess
import sys

import pytest

from aigc_jax import memory

FAULTS = """
import resource, sys
from aigc_jax import memory
kept = memory.keep_freed() if "keep" in sys.argv else False
import jax, jax.numpy as jnp
f = jax.jit(lambda x: -x)
x = jnp.ones((3072, 4096))  # more than any piece kept otherwise
counts = []
for _ in range(8):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(3):
    f(x).block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(counts))  # the least: the allocator settles as it likes
"""

PAGES = """
from aigc_jax import memory

def kilobytes(name):
  with open("/proc/self/smaps_rollup") as lines:
    return next(int(l.split()[1]) for l in lines if l.startswith(name))

kept = memory.keep_freed()
resident = kilobytes("Rss")
taken = b"x" * 2**26
print(kept, resident, kilobytes("AnonHugePages"))
"""
LARGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def printed(script: str, *words: str) -> list[str]:
  env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
  env.pop("GLIBC_TUNABLES", None)
  done = subprocess.run(
    [sys.executable, "-c", script, *words],
    env=env | {"JAX_PLATFORMS": "cpu"},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  return done.stdout.split()


def faults(*words) -> tuple[str, int]:
  kept, count = printed(FAULTS, *words)
  return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.slow
def test_steps_after_the_first_ask_the_system_for_few_pages():
  kept, few = faults("keep")
  _, many = faults()
  assert kept == "True"
  assert few <= many / 4 and many > 1000


@pytest.mark.skipif(
  not LARGE.exists() or "[never]" in LARGE.read_text(),
  reason="a system without large pages",
)
def test_memory_comes_in_large_pages_and_only_where_it_is_used():
  if memory.OVERCOMMIT.read_text().strip() == "2":
    pytest.skip("a system that counts addresses as memory")
  kept, resident, large = printed(PAGES)
  assert kept == "True"
  assert int(resident) < 2**17 and int(large) >= 2**15


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_no_addresses_are_taken_where_they_count_as_memory(tmp_path):
  strict = tmp_path / "overcommit_memory"
  strict.write_text("2\n")
  for path in (strict, tmp_path / "none"):
    script = f"""
import pathlib
from aigc_jax import memory
memory.OVERCOMMIT = pathlib.Path({str(path)!r})
print(memory.keep_freed())
with open("/proc/self/status") as lines:
  print(next(l.split()[1] for l in lines if l.startswith("VmSize")))
"""
    kept, size = printed(script)
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert kept == "True" and int(size) * 1024 < half


@pytest.mark.parametrize(
  "environ",
  [
    {"JAX_PLATFORMS": "cuda"},
    {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "4"},
    {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
  ],
)
def test_accelerators_and_settings_of_the_users_own_are_left_alone(environ):
  assert not memory.keep_freed(environ)
