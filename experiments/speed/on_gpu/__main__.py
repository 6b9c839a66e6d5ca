"""All parts, each with a time limit; one JSON with everything, a table last.

  bash experiments/speed/on_gpu.sh --out=on_gpu.json --nanogpt=FOLDER
  bash experiments/speed/on_gpu.sh --rehearse

See the README of experiments/speed. The JSON is written after each part, with
what a part had found when its time was up or it failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.speed.on_gpu.part import NAMES
from experiments.speed.on_gpu.table import table

# Seconds a part may take at most.
LIMITS = {
  "card": 60, "numerics": 150, "steps": 220, "nanogpt": 150, "decoding": 80,
  "repeat": 110, "starts": 80,
}  # fmt: skip


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("--out", type=Path, default=Path("on_gpu.json"))
  parser.add_argument("--parts", default=",".join(LIMITS))
  parser.add_argument("--limit", type=float, default=470, help="seconds of all")
  parser.add_argument("--nanogpt", type=Path, help="folder with its model.py")
  parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
  args = parser.parse_args()
  parts = args.parts.split(",")
  unknown = [name for name in parts if name not in NAMES]
  if unknown:
    parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(NAMES)}")
  began, found = time.monotonic(), {}
  for name in parts:
    left = args.limit - (time.monotonic() - began)
    if left < 10:
      found[name] = {"left out": "no time was left"}
      continue
    # A rehearsal may be on a slow machine.
    most = LIMITS[name] * (3 if args.rehearse else 1)
    found[name] = one(name, min(most, left), args)
    new = args.out.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(new, args.out)
    print(f"-- {name}: {found[name]['seconds']} s", flush=True)
  print(table(found))
  print(f"everything in {args.out}")
  return any("ended" in part for part in found.values())


def one(name: str, seconds: float, args) -> dict:
  """What a part has found, and how it ended if not by itself."""
  with tempfile.TemporaryDirectory() as folder:
    out, errors = Path(folder, "found.json"), Path(folder, "errors")
    line = [
      sys.executable, "-m", "experiments.speed.on_gpu.part", name,
      f"--out={out}", f"--seconds={seconds}",
    ]  # fmt: skip
    line += ["--rehearse"] * args.rehearse
    if args.nanogpt:
      line.append(f"--nanogpt={args.nanogpt.absolute()}")
    began = time.monotonic()
    with errors.open("w") as stderr:
      process = subprocess.Popen(line, stderr=stderr, start_new_session=True)
      try:
        status, late = process.wait(seconds), False
      except subprocess.TimeoutExpired:
        status, late = None, True
      stop(process)
    found = json.loads(out.read_text()) if out.is_file() else {}
    found["seconds"] = round(time.monotonic() - began, 1)
    if late:
      found["ended"] = f"its {seconds:.0f} s were over"
    elif status:
      last = errors.read_text(errors="replace").splitlines()[-30:]
      found["ended"] = f"exit status {status}"
      found["where"] = last
    return found


def stop(process: subprocess.Popen) -> None:
  """Ends a part with all that it has started, so that the card is free."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


if __name__ == "__main__":
  sys.exit(main())
