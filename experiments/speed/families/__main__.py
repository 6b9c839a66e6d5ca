"""Training steps of the families beside their peers on PyTorch, in turns.

  python -m experiments.speed.families [NAME ...] [--turns=5] [--bf16]
      [--only=ours,eager] [--steps_per_call=4] [--out=x.json]

Peers are models of transformers, of diffusers (dit, unet, vae_sd) and of timm
(vit_timm), which are not among what this project installs:

  pip install diffusers timm

Each in a process of its own that works when it is its turn, in an order that is
turned round each time: ours by XLA and by oneDNN, the peer's eager and by
torch.compile; or those that --only names. --steps_per_call: of ours in one call
of the device, as compute.steps_per_call says; times are of one step. Prints the
medians of their milliseconds a step, and how many parameters both have: another
number is refused, for it is another model.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.speed.families.sizes import OURS
from experiments.speed.on_gpu.turns import Worker

HERE = "experiments.speed.families"
LIMIT = 600  # seconds for one to compile


KINDS = ("ours", "onednn", "eager", "compiled")


def workers(
  name: str, bf16: bool, only: Sequence[str], per_call: int
) -> dict[str, Worker]:
  """{what it is: its process}, all of them compiling."""
  ours = [f"--steps_per_call={per_call}"]
  ours += ["--products=bf16"] if bf16 else []
  theirs = ["--autocast"] if bf16 else []
  made = {
    "ours": (f"{HERE}.ours", name, *ours),
    "onednn": (f"{HERE}.ours", name, "--library=onednn", *ours),
    "eager": (f"{HERE}.theirs", name, *theirs),
    "compiled": (f"{HERE}.theirs", name, "--compile", *theirs),
  }
  return {what: Worker(what, *made[what]) for what in only}


def compare(running: dict[str, Worker], turns: int) -> dict:
  """{what: its numbers} of one family; what fails says why."""
  running, found = dict(running), {}
  for what, worker in list(running.items()):
    try:
      found[what] = worker.hear(LIMIT)
      found[what]["first ms"] = worker.ask(LIMIT, steps=1)["ms"]
    except (TimeoutError, RuntimeError) as error:
      found[what] = {"failed": str(error)[-500:]}
      running.pop(what).end()
  times: dict[str, list[float]] = {what: [] for what in running}
  for turn in range(turns):
    for what in list(running)[:: -1 if turn % 2 else 1]:
      steps = max(1, round(2000 / found[what]["first ms"]))
      times[what].append(running[what].ask(LIMIT, steps=steps)["ms"])
  for what, worker in running.items():
    found[what] |= {"ms": statistics.median(times[what]), "turns": times[what]}
    worker.end()
  return found


def line(name: str, found: dict) -> str:
  """A row of the table."""
  ms = {what: found.get(what, {}).get("ms") for what in KINDS}
  own = [ms[what] for what in ("ours", "onednn") if ms[what]]

  def share(what):
    return f"{min(own) / ms[what]:.2f}" if own and ms[what] else "-"

  counts = {n.get("parameters") for n in found.values() if "ms" in n}
  if len(counts) > 1:
    raise ValueError(f"{name}: these are not the same model: {counts}")
  cells = [
    f"{x:,.0f}" if x else "failed" if what in found else "-"
    for what, x in ms.items()
  ]
  cells += [share("eager"), share("compiled")]
  cells += [f"{n:,}" for n in counts]
  return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("names", nargs="*", default=[])
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--bf16", action="store_true")
  parser.add_argument(
    "--only", default=",".join(KINDS), help="of " + ", ".join(KINDS)
  )
  parser.add_argument("--steps_per_call", type=int, default=1)
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  only = args.only.split(",")
  if unknown := sorted(set(only) - set(KINDS)):
    parser.error(f"--only={args.only}: {unknown[0]!r} is not among {KINDS}")
  print(
    "| family | ours | ours, oneDNN | eager | compiled | ours / eager "
    "| ours / compiled | parameters |"
  )
  everything = {}
  for name in args.names or OURS:
    running = workers(name, args.bf16, only, args.steps_per_call)
    everything[name] = compare(running, args.turns)
    print(line(name, everything[name]), flush=True)
    if args.out:
      args.out.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
  main()
