"""nanoGPT's own model beside ours, in turns, each in a process of its own."""

import statistics

from experiments.speed.on_gpu.part import Call
from experiments.speed.on_gpu.turns import Worker

BATCHES = (32, 64)  # of nanoGPT; the better one counts
TURNS = 5


def find(call: Call) -> None:
  if call.nanogpt is None:
    call.say("left out", "--nanogpt=FOLDER says where its model.py is")
    return
  size = "tiny" if call.rehearse else "gpt2_124m"
  module = "experiments.speed.on_gpu"
  batches = (2,) if call.rehearse else BATCHES
  tiny = ["--tiny"] if call.rehearse else []
  workers = {"ours": Worker("ours", f"{module}.step", f"--size={size}")}
  for batch in batches:
    workers[f"nanoGPT, batch {batch}"] = Worker(
      f"nanoGPT, batch {batch}", f"{module}.nanogpt_step",
      f"--folder={call.nanogpt}", f"--batch={batch}", *tiny,
    )  # fmt: skip
  ready = {}
  for name, worker in workers.items():
    try:
      ready[name] = worker.hear(call.left - 20)
      worker.ask(call.left, steps=3)
    except (TimeoutError, RuntimeError) as error:
      call.say(name, {"failed": str(error)})
      ready.pop(name, None)
  rates: dict[str, list[float]] = {name: [] for name in ready}
  last = {}
  for turn in range(TURNS):
    for name in list(ready)[:: -1 if turn % 2 else 1]:
      last[name] = workers[name].ask(call.left, steps=1 if call.rehearse else 6)
      rates[name].append(ready[name]["units"] / last[name]["ms"] * 1e3)
    for name in ready:
      call.say(name, ready[name] | {
        "tokens/s": statistics.median(rates[name]), "turns": rates[name],
        "loss": last[name]["loss"], "peak_bytes": last[name]["peak_bytes"],
      })  # fmt: skip
  for worker in workers.values():
    worker.end()
