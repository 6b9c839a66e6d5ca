"""One part in a process of its own; what it finds is on disk at once.

  python -m experiments.speed.on_gpu.part NAME --out=FILE.json [--rehearse]

A part is a function of Call. What it has found before its time is up, or before
it fails, is not lost: each `say` writes the file anew.
"""

import argparse
import importlib
import json
import math
import os
import time
from pathlib import Path

NAMES = ("card", "numerics", "repeat", "steps", "nanogpt", "decoding", "starts")


class Call:
  """What a part is asked for, and where it says what it found.

  rehearse: tiny sizes, on whatever device there is. seconds: how long it may
  take. nanogpt: nanoGPT's folder, or None.
  """

  def __init__(self, out: Path, rehearse: bool, seconds: float, nanogpt):
    self.rehearse, self.nanogpt = rehearse, nanogpt
    self._out, self._ends = out, time.monotonic() + seconds
    self._found: dict = {}

  @property
  def left(self) -> float:
    """Seconds until the part is stopped."""
    return self._ends - time.monotonic()

  def say(self, name: str, value) -> None:
    """Writes that `name` is `value`, beside all that was said before."""
    self._found[name] = value
    text = json.dumps(finite(self._found), indent=1, allow_nan=False)
    new = self._out.with_suffix(".new")
    new.write_text(text + "\n")
    os.replace(new, self._out)


def finite(value):
  """The same; a number that JSON does not have becomes its name."""
  if isinstance(value, dict):
    return {str(k): finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("name", choices=NAMES)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--seconds", type=float, default=600)
  parser.add_argument("--nanogpt", type=Path)
  parser.add_argument("--rehearse", action="store_true")
  args = parser.parse_args()
  module = importlib.import_module(f"experiments.speed.on_gpu.{args.name}")
  module.find(Call(args.out, args.rehearse, args.seconds, args.nanogpt))


if __name__ == "__main__":
  main()
