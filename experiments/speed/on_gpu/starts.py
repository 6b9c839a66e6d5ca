"""Seconds from the command to the first step, with and without a cache."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.speed import startup
from experiments.speed.on_gpu.part import Call


def find(call: Call) -> None:
  prepare = [sys.executable, "-m", "aigc_jax.prepare", startup.CONFIG]
  with tempfile.TemporaryDirectory() as name:
    os.environ["HOME"] = name  # where token stores are kept
    subprocess.run(prepare, check=True, stdout=sys.stderr)
    cache = Path(name, "compiled")
    for state in ("cold", "warm", "warm again"):
      folder = Path(name, state.replace(" ", "-"))
      call.say(state, startup.first_step(folder, cache))
