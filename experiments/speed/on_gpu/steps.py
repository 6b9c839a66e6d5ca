"""Training steps of known sizes, each beside neighbours of its setting."""

import json
import statistics
import time

from experiments.speed.on_gpu.part import Call
from experiments.speed.on_gpu.turns import Worker

# name -> size, changed keys, options of the compiler
SETTINGS: dict[str, tuple[str, dict, dict]] = {
  "gpt2_124m": ("gpt2_124m", {}, {}),
  "llama_1b": ("llama_1b", {}, {}),
  "gpt2_1.5b": ("gpt2_1.5b", {}, {}),
  "llama_3b": ("llama_3b", {}, {}),
  "gpt2_124m, products by libraries": (
    "gpt2_124m", {}, {"xla_gpu_enable_triton_gemm": False},
  ),
  "gpt2_124m, batch 128": ("gpt2_124m", {"data.batch": 128}, {}),
  "gpt2_124m, embedding by scatter": (
    "gpt2_124m", {"compute.embed_gradient": "scatter"}, {},
  ),
  "llama_1b, products by libraries": (
    "llama_1b", {}, {"xla_gpu_enable_triton_gemm": False},
  ),
  "llama_1b, 8 bits": ("llama_1b", {"compute.products": "fp8"}, {}),
  "gpt2_1.5b, layers in a loop": ("gpt2_1.5b", {"compute.unroll": 1}, {}),
  "gpt2_1.5b, 8 bits": ("gpt2_1.5b", {"compute.products": "fp8"}, {}),
  "llama_3b, products again": ("llama_3b", {"compute.remat": "dots"}, {}),
  "llama_3b, batch 2": ("llama_3b", {"data.batch": 2}, {}),
}  # fmt: skip
REHEARSED = {
  "tiny": ("tiny", {"model.layers": 1}, {}),
  "tiny, remat": ("tiny", {"model.layers": 1, "compute.remat": "full"}, {}),
  "tiny, refused": ("tiny", {"compute.kernel": "cudnn"}, {}),
}
SIDE_BY_SIDE = 4  # that compile at once
WINDOWS = 5
SECONDS = 0.8  # of a window


def find(call: Call) -> None:
  settings = dict(REHEARSED if call.rehearse else SETTINGS)
  waiting: dict[str, Worker] = {}
  names = iter(list(settings))

  def start() -> None:
    for name in names:
      size, change, options = settings[name]
      waiting[name] = Worker(
        name, "experiments.speed.on_gpu.step", f"--size={size}",
        f"--change={json.dumps(change)}", f"--options={json.dumps(options)}",
      )  # fmt: skip
      return

  while settings:
    # All that can be compiled now is, before anything is timed.
    while len(waiting) < SIDE_BY_SIDE:
      before = len(waiting)
      start()
      if len(waiting) == before:
        break
    if not waiting:
      break
    heard = {}
    for name, worker in waiting.items():
      try:
        heard[name] = worker.hear(call.left - 20)
        call.say(name, heard[name])
      except (TimeoutError, RuntimeError) as error:
        call.say(name, {"failed": str(error)})
    for name, worker in waiting.items():
      if name in heard:
        call.say(name, heard[name] | timed(worker, call))
      worker.end()
    waiting.clear()


def timed(worker: Worker, call: Call) -> dict:
  """The median of windows, the memory, and where the time goes."""
  found: dict = {}
  try:
    first = worker.ask(call.left, steps=3)
    once = worker.ask(call.left, steps=3)["ms"]
    steps = max(2, round(SECONDS * 1e3 / once)) if not call.rehearse else 2
    ms = []
    for _ in range(WINDOWS):
      last = worker.ask(call.left, steps=steps)
      ms.append(last["ms"])
    found |= {
      "ms": statistics.median(ms), "windows": ms, "first loss": first["loss"],
      "loss": last["loss"], "after steps": last["steps"],
      "peak_bytes": last["peak_bytes"],
    }  # fmt: skip
    began = time.monotonic()
    found["time"] = worker.ask(call.left, profile=3)
    found["profile_seconds"] = time.monotonic() - began
  except (TimeoutError, RuntimeError) as error:
    found["failed"] = str(error)
  return found
