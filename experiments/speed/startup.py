"""Seconds from the command to the first step, and of the import alone.

  python -m experiments.speed.startup [--repeats=2]

The quickstart in processes of their own, its token store prepared beforehand,
with an empty and with a filled cache of compiled programs. The first step is
done when its row of metrics is on the disk. Prints one line of JSON, medians.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = [sys.executable, "-m", "aigc_jax.train"]
CONFIG = "--config=configs/quickstart.py"
LIMIT = 120.0  # seconds until the first step


def first_step(workdir: Path, cache: Path) -> dict[str, float]:
  """Seconds to the first row, and what the run's journal says of compiling."""
  line = [*TRAIN, CONFIG, f"--workdir={workdir}", "--config.log.every_steps=1"]
  began = time.monotonic()
  process = subprocess.Popen(
    line,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  metrics = workdir / "metrics.jsonl"
  while not (metrics.is_file() and metrics.stat().st_size):
    time.sleep(0.01)
    if process.poll() is not None or time.monotonic() - began > LIMIT:
      raise SystemExit(f"no first step: {' '.join(line)}")
  seconds = time.monotonic() - began
  process.send_signal(signal.SIGTERM)
  process.wait(LIMIT)
  events = (workdir / "events.jsonl").read_text().splitlines()
  compiled = [e for e in map(json.loads, events) if e["event"] == "compiled"]
  return {"seconds": seconds, "compile_seconds": compiled[0]["seconds"]}


def import_seconds() -> float:
  """Of `import aigc_jax.train`, without those of Python itself."""

  def took(code: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - began

  took("import aigc_jax.train")  # files into the page cache
  return min(took("import aigc_jax.train") for _ in range(3)) - took("pass")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--repeats", type=int, default=2)
  repeats = parser.parse_args().repeats
  prepare = [sys.executable, "-m", "aigc_jax.prepare", CONFIG]
  subprocess.run(prepare, check=True, stdout=sys.stderr)
  found: dict[str, list[dict]] = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as name:
    for i in range(repeats):
      cache = Path(name, f"compiled-{i}")
      for state, runs in found.items():
        runs.append(first_step(Path(name, f"{state}-{i}"), cache))
  numbers = {
    f"{state}_cache_{key}": statistics.median(r[key] for r in runs)
    for state, runs in found.items()
    for key in ("seconds", "compile_seconds")
  }
  numbers["import_seconds"] = import_seconds()
  print(json.dumps({k: round(v, 3) for k, v in numbers.items()}))


if __name__ == "__main__":
  main()
