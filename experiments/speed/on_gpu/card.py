"""The machine: card, driver, versions, and what it reaches at best."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

import jax

from aigc_jax.timing import machine
from experiments.speed.on_gpu.part import Call

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch")
QUERY = (
  "name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw,"
  "temperature.gpu"
)


def find(call: Call) -> None:
  call.say("card", smi())
  call.say(
    "host", {"python": platform.python_version(), "cores": os.cpu_count()}
  )
  call.say("versions", versions())
  call.say("device", jax.devices()[0].device_kind)
  call.say("cudnn", cudnn())
  for time in ("first", "second"):
    call.say(f"ceilings, {time}", machine.ceilings("bfloat16"))
  call.say("card afterwards", smi())


def smi() -> str:
  """A line of nvidia-smi, or "none"."""
  if not shutil.which("nvidia-smi"):
    return "none"
  line = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
  done = subprocess.run(line, capture_output=True, text=True, timeout=30)
  return done.stdout.strip() or done.stderr.strip()


def versions() -> dict[str, str]:
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "none"
  return found


def cudnn() -> str:
  """The version that JAX has loaded, or "none"."""
  from jax._src.lib import cuda_versions

  return str(cuda_versions.cudnn_get_version()) if cuda_versions else "none"
