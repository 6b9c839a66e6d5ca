"""What a machine without a network lacks, as wheels to take there.

  python -m experiments.speed.on_gpu.wheels --python=PYTHON --out=FOLDER

The Python that is named has the versions of that machine: its own jax, torch
and so on. What this package needs and is not there is brought into FOLDER;
then it is looked at whether everything imports with the wheels beside it.
Prints a line for each: name, version, size.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
MOST = 64  # MiB
IMPORTS = "import aigc_jax.train, aigc_jax.bench, experiments.speed.on_gpu.step"


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("--python", default=sys.executable)
  parser.add_argument("--out", type=Path, required=True)
  args = parser.parse_args()
  wanted = lacking(args.python)
  args.out.mkdir(parents=True, exist_ok=True)
  old = sorted(args.out.glob("*.whl"))
  if old:
    parser.error(f"--out={args.out} has wheels already, such as {old[0].name}")
  if wanted:
    pip(args.python, "wheel", "-q", "--no-deps", "-w", str(args.out), *wanted)
  total = 0
  for wheel in sorted(args.out.glob("*.whl")):
    name, version = wheel.name.split("-")[:2]
    size = wheel.stat().st_size
    total += size
    print(f"{name:28s} {version:12s} {size / 2**20:6.2f} MiB")
  print(f"{len(wanted)} wheels, {total / 2**20:.1f} MiB")
  if total > MOST * 2**20:
    print(f"that is more than {MOST} MiB")
    return 1
  check(args.python, args.out)
  print("everything imports with them")
  return 0


def pip(python: str, *arguments: str) -> None:
  subprocess.run([python, "-m", "pip", *arguments], check=True)


def lacking(python: str) -> list[str]:
  """NAME==VERSION of what would have to be installed beside what is there."""
  with tempfile.TemporaryDirectory() as folder:
    report = Path(folder, "report.json")
    pip(
      python, "install", "-q", "--dry-run", f"--report={report}", "-e",
      str(ROOT),
    )  # fmt: skip
    found = json.loads(report.read_text())["install"]
  names = [(x["metadata"]["name"], x["metadata"]["version"]) for x in found]
  return [f"{name}=={v}" for name, v in names if name != "aigc_jax"]


def check(python: str, folder: Path) -> None:
  """Imports with the wheels unpacked beside what is there."""
  with tempfile.TemporaryDirectory() as site:
    wheels = sorted(map(str, folder.glob("*.whl")))
    if wheels:
      pip(
        python, "install", "-q", "--no-index", "--no-deps", "--target", site,
        *wheels,
      )  # fmt: skip
    path = os.pathsep.join((site, str(ROOT)))
    env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    subprocess.run([python, "-c", IMPORTS], env=env, check=True, cwd=folder)


if __name__ == "__main__":
  sys.exit(main())
