"""Tokens a second from a token store, and whether memory stays flat.

  python -m experiments.speed.data [--megabytes=200] [--seconds=6]

Bytes of text as tokens, rows of T=256 in random order, batches of 32: made on
the host alone; made and placed on the device; the same from a store whose
files were dropped from the page cache; the same while another process prepares
a store of the same size. Memory is the process's own (without the pages of the
mapped files), sampled while placing. Prints one line of JSON.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from aigc_jax import data, run
from aigc_jax.presets import skeleton

SOURCES = Path(os.__file__).parent  # Python's own library: real text
PREPARE = [sys.executable, "-m", "aigc_jax.prepare", "--tokenizer=bytes"]


def write_text(path: Path, size: int) -> None:
  """At least `size` bytes: the library's sources, as often as needed."""
  texts = [p.read_bytes() for p in sorted(SOURCES.glob("*.py"))]
  with open(path, "wb") as file:
    i = 0
    while file.tell() < size:
      file.write(texts[i % len(texts)])
      i += 1


def config_of(path: Path, root: Path) -> run.Config:
  config = skeleton()
  config.data.update(
    path=str(path), root=str(root), tokenizer="bytes", batch=32, length=256
  )
  config.model.vocab = 384
  return run.read(config)


def drop(root: Path) -> int:
  """Takes the files below `root` out of the page cache; their bytes."""
  total = 0
  for path in root.rglob("*.npy"):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    total += os.fstat(fd).st_size
    os.close(fd)
  return total


def from_disk() -> int:
  """Bytes this process has had read from storage."""
  found = Path("/proc/self/io").read_text()
  return int(re.search(r"^read_bytes: (\d+)", found, re.MULTILINE)[1])


def own_kib() -> int:
  """Memory of this process that no file stands behind."""
  status = Path("/proc/self/status").read_text()
  return int(re.search(r"RssAnon:\s*(\d+)", status)[1])


def rate(
  batches: Iterator, tokens: int, seconds: float, each: Callable = lambda: None
) -> float:
  """Tokens a second of an iterator, over so many seconds."""
  count, began = 0, time.monotonic()
  while (elapsed := time.monotonic() - began) < seconds:
    jax.block_until_ready(next(batches))
    each()
    count += 1
  return count * tokens / elapsed


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--megabytes", type=int, default=200)
  parser.add_argument("--seconds", type=float, default=6.0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    found = measure(Path(name), args.megabytes * 10**6, args.seconds)
  print(json.dumps({
    k: round(v) if abs(v) > 100 else round(v, 3) for k, v in found.items()
  }))  # fmt: skip


def measure(folder: Path, size: int, seconds: float) -> dict[str, float]:
  """All the figures; rates are tokens a second."""
  text, root = folder / "text.txt", folder / "stores"
  write_text(text, size)
  config = config_of(text, root)
  mesh = run.make_mesh(config)
  began = time.monotonic()
  with contextlib.redirect_stdout(sys.stderr):
    stream = run.open_stream(config, say=print)
  found = {"prepare_bytes_per_second": size / (time.monotonic() - began)}
  tokens = config["data"]["batch"] * config["data"]["length"]
  found["store_bytes"] = drop(root)
  before = from_disk()
  with data.batches(stream, mesh, 0, None) as batches:
    found["cold"] = rate(batches, tokens, seconds)
  found["cold_read_bytes"] = from_disk() - before
  rows = (stream.rows(n, slice(None)) for n in range(1 << 40))
  found["host_warm"] = rate(rows, tokens, seconds)
  times, memory = [], []

  def look() -> None:
    if not times or time.monotonic() - times[-1] > 0.1:
      times.append(time.monotonic())
      memory.append(own_kib())

  with data.batches(stream, mesh, 0, None) as batches:
    found["warm"] = rate(batches, tokens, 2 * seconds, look)
  half = len(times) // 2  # the first half fills pools
  slope = np.polyfit(np.array(times[half:]), memory[half:], 1)[0]
  found["memory_kib_per_second"] = slope
  found["memory_mib"] = memory[-1] / 1024
  line = [*PREPARE, f"--path={text}", f"--root={folder / 'other'}"]
  process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
  with data.batches(stream, mesh, 0, None) as batches:
    found["while_preparing"] = rate(batches, tokens, seconds)
  found["still_preparing"] = process.poll() is None
  process.terminate()
  process.wait()
  return found


if __name__ == "__main__":
  main()
