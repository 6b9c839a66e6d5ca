"""One switch at a time: which settings are fast, and keep the loss."""

import dataclasses
import json
import math
import statistics

import jax

from aigc_jax import command, run, tree
from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.timing import machine
from aigc_jax.timing.stepping import Timed

LOSS_STEPS = 20  # after which a switch's loss is compared with the reference
PASSES = 5  # over the switches at most, to find the best setting
MAPPINGS = 6_000  # of memory left, below which nothing more is compiled
# Of each line: short ones, as other work on a machine comes and goes.
TURNS = 10
LEAST = 0.01  # by which a flip must be faster to be adopted,
MOST = 0.8  # and in how many of the turns
# The reference: float32 with everything plain, and by how much of it the loss
# after LOSS_STEPS may differ, by what is stored in bfloat16 or less.
PLAIN = {
  "compute.dtype": "float32", "compute.products": "plain",
  "compute.kernel": "xla", "compute.remat": "none", "compute.unroll": 1,
  "compute.fuse_projections": False, "compute.embed_gradient": "scatter",
  "compute.cast_once": False, "compute.steps_per_call": 1,
  "compute.library": "xla", "objective.chunk": None,
  "objective.logits": "float32", "optim.mu_dtype": "float32",
}  # fmt: skip
TOLERANCE = {
  "nothing": 2e-5, "activations": 5e-3, "products": 2e-2, "moments": 2e-2,
}  # fmt: skip
# name -> changed keys. A change that is what a config says already is left out.
SWITCHES: dict[str, dict[str, object]] = {
  "attention: dense": {"compute.kernel": "xla"},
  "attention: chunked": {"compute.kernel": "chunked"},
  "attention: blocks": {"compute.kernel": "blocks"},
  "loss: all logits at once": {"objective.chunk": None},
  "loss: 1024 tokens at once": {"objective.chunk": 1024},
  "logits: bfloat16": {"objective.logits": "bfloat16"},
  "logits: float32": {"objective.logits": "float32"},
  "remat: full": {"compute.remat": "full"},
  "remat: dots": {"compute.remat": "dots"},
  "layers: scanned": {"compute.unroll": 1},
  "layers: unrolled": {"compute.unroll": None},
  "projections: joined": {"compute.fuse_projections": True},
  "projections: apart": {"compute.fuse_projections": False},
  "embedding gradient: scatter": {"compute.embed_gradient": "scatter"},
  "embedding gradient: product": {"compute.embed_gradient": "product"},
  "embedding gradient: sorted": {"compute.embed_gradient": "sorted"},
  "weights: cast once": {"compute.cast_once": True},
  "weights: cast at each use": {"compute.cast_once": False},
  "float32": {"compute.dtype": "float32"},
  "bfloat16": {"compute.dtype": "bfloat16"},
  "products: plain": {"compute.products": "plain"},
  "products: bf16": {"compute.products": "bf16"},
  "products: fp8": {"compute.products": "fp8"},
  "library: xla": {"compute.library": "xla"},
  "library: onednn": {"compute.library": "onednn"},
  "first moment: bfloat16": {"optim.mu_dtype": "bfloat16"},
  "1 step in a call": {"compute.steps_per_call": 1},
  "4 steps in a call": {"compute.steps_per_call": 4},
}
# Keys never adopted.
OTHER_NUMBERS = (
  "compute.dtype", "compute.products", "optim.mu_dtype", "objective.logits",
)  # fmt: skip


@dataclasses.dataclass
class Line:
  """One row of the table: a config, and what was found about it."""

  name: str
  change: dict
  config: run.Config
  timed: Timed | None = None
  loss: float = math.nan  # after LOSS_STEPS
  refused: str = ""
  same: str = ""  # the line whose program it is, too
  options: dict | None = None  # of the compiler


def ablate(config: run.Config, mesh, steps: int) -> dict:
  """The best setting, then with one switch flipped at a time; prints."""
  reference = Line("float32, all plain", PLAIN, changed(config, PLAIN))
  prepare(reference, mesh, [])
  reference.timed = None  # only its loss is of use
  best, adopted = config, {}
  known: dict[str, Line] = {}
  for left in reversed(range(PASSES)):
    lines = lines_of(config, best, known)
    for key, line in list(known.items()):
      if not any(line is other for other in lines):
        del known[key]  # with its program, which takes memory
    together = take_turns(lines, mesh, steps)
    better = None
    if left:
      better = next(
        (x for x in faster(lines) if again(x, lines[0], together, steps)), None
      )
    if better is None:
      break
    print(f"adopted: {better.name}", flush=True)
    adopted[better.name] = better.change
    best = changed(best, better.change)
  if not together:
    print("The states do not fit side by side: each turn starts a fresh one.")
  print("\n" + lines_table(lines, reference.loss))
  return {
    "config": config,
    "best": best,
    "adopted": adopted,
    "jax": jax.__version__,
    "device": mesh.devices.flat[0].device_kind,
    "reference_loss": reference.loss,
    "states_side_by_side": together,
    "switches": told(lines, reference.loss),
  }


def lines_of(
  config: run.Config, best: run.Config, known: dict[str, Line]
) -> list[Line]:
  """The best setting and its neighbours; those of `known` are not made anew."""
  wanted = [("best" if best != config else "as configured", {}, best)]
  if best != config:
    wanted.append(("as configured", {}, config))
  wanted += [(n, c, changed(best, c)) for n, c in switches(best)]
  lines = []
  for name, change, what in wanted:
    if what == config and lines and name != "as configured":
      continue  # this flip leads back to the line above
    line = known.setdefault(run.fingerprint(what), Line(name, change, what))
    line.name, line.change = name, change
    lines.append(line)
  return lines


def prepare(line: Line, mesh, others: list[Line]) -> None:
  """Compiles and takes the first steps; a refusal is kept in the line.

  So is, instead, which of the `others` has the same program.
  """
  if machine.mappings_left() < MAPPINGS:
    line.refused = (
      "not compiled: the programs of the other lines take nearly all the "
      "mappings of memory that this system gives a process: raise "
      "vm.max_map_count"
    )
    return
  try:
    timed = Timed(run.build(line.config, mesh), line.options)
    for other in others:
      if other.timed and other.timed.program == timed.program:
        line.same = other.name
        return
    line.timed = timed
    line.timed.step(LOSS_STEPS)
    line.loss = line.timed.losses[LOSS_STEPS - 1]
  except BadConfig as refusal:
    line.refused = command.text_of(refusal)
  except jax.errors.JaxRuntimeError as error:
    line.timed, line.refused = None, "does not fit into memory"
    if "RESOURCE_EXHAUSTED" not in str(error):
      if not line.options:
        raise
      line.refused = str(error).splitlines()[0]


def take_turns(lines: list[Line], mesh, steps: int) -> bool:
  """Times all the lines, window by window; whether their states fit at once."""
  device = mesh.devices.flat[0]
  together = True
  for line in lines:
    line.same = ""  # as the lines before are others now
  for line in lines:
    if line.timed is None and not line.refused:
      prepare(line, mesh, lines)
      print(f"{line.name}: {_why_not(line) or 'compiled'}", flush=True)
    if line.timed is None:
      if line is lines[0]:
        raise BadConfig(line.refused)
      continue
    state = tree.nbytes(line.timed.run.state)
    if not together or machine.free_bytes(device) < 2 * state + _largest(lines):
      together = False
      for other in lines:
        if other.timed:
          other.timed.park()
  _turns(lines, together, steps)
  return together


def _turns(lines: list[Line], together: bool, steps: int) -> None:
  """Times the lines anew, window by window."""
  running = [line.timed for line in lines if line.timed is not None]
  for timed in running:
    timed.ms = []
    if not together:
      timed.park()
  for turn in range(TURNS):
    for timed in running[:: -1 if turn % 2 else 1]:
      if timed.state is None:
        timed.step(1)
      timed.window(steps // TURNS)
      if not together:
        timed.park()


def _largest(lines: list[Line]) -> int:
  """The most temporary memory of a step."""
  return max(line.timed.temporary_bytes for line in lines if line.timed)


def faster(lines: list[Line]) -> list[Line]:
  """The flips that beat the first line, and not by noise; the fastest first.

  One at a time is to be adopted: two that help alone may hurt together.
  """
  found = [
    line
    for line in lines[1:]
    if line.timed and line.change and not set(line.change) & set(OTHER_NUMBERS)
    if _beats(line, lines[0])
  ]
  return sorted(found, key=lambda x: statistics.median(_ratios(x, lines[0])))


def again(line: Line, first: Line, together: bool, steps: int) -> bool:
  """Whether a flip beats the first line once more, the two in turns alone.

  The fastest of twenty flips that change nothing looks faster, too.
  """
  before = first.timed.ms, line.timed.ms  # which the table is made of
  _turns([first, line], together, steps)
  beats = _beats(line, first)
  first.timed.ms, line.timed.ms = before
  return beats


def _beats(line: Line, first: Line) -> bool:
  """By LEAST, and in most of the turns."""
  each = _ratios(line, first)
  wins = sum(ratio < 1 for ratio in each)
  return statistics.median(each) < 1 - LEAST and wins >= MOST * len(each)


def _ratios(line: Line, first: Line) -> list[float]:
  """Of the times in each turn."""
  pairs = zip(line.timed.ms, first.timed.ms, strict=True)
  return [a / b for a, b in pairs]


def tolerance(config: run.Config) -> float:
  """How far the loss of a config may be from the reference, relatively."""
  if config["optim"]["mu_dtype"] != "float32":
    return TOLERANCE["moments"]
  if config["compute"]["products"] == "fp8":
    return TOLERANCE["products"]
  low = (
    config["compute"]["dtype"], config["compute"]["products"],
    config["objective"]["logits"],
  ) != ("float32", "plain", "float32")  # fmt: skip
  return TOLERANCE["activations" if low else "nothing"]


def told(lines: list[Line], reference: float) -> list[dict]:
  """What was found, line by line, as plain values."""
  return [
    {
      "switch": line.name,
      "change": line.change,
      "refused": line.refused,
      "same_as": line.same,
      **_told(line, lines[0], reference),
    }
    for line in lines
  ]


def _why_not(line: Line) -> str:
  """Why it is not timed, if so."""
  return f"the program of {line.same!r}" if line.same else line.refused


def _told(line: Line, first: Line, reference: float) -> dict:
  if line.timed is None:
    return {}
  off = line.loss / reference - 1
  each = _ratios(line, first)
  return line.timed.numbers() | {
    "ratio": statistics.median(each),
    "ratios": each,
    "loss": line.loss,
    "off_reference": off,
    "tolerance": tolerance(line.config),
    "within": abs(off) <= tolerance(line.config),
  }


def lines_table(lines: list[Line], reference: float) -> str:
  """The table for people."""
  rows = []
  for line in lines:
    if line.timed is None:
      rows.append((line.name, "", "", "", "", "", _why_not(line)))
      continue
    one = _told(line, lines[0], reference)
    within = "within" if one["within"] else "BEYOND"
    rows.append((
      line.name, f"{one['ms']['median']:.2f}", f"{one['ratio'] - 1:+.1%}",
      f"{min(one['ratios']) - 1:+.1%} to {max(one['ratios']) - 1:+.1%}",
      f"{one['temporary_bytes'] / 2**20:,.0f}", f"{line.loss:.5f}",
      f"{one['off_reference']:+.1e}, {within} {one['tolerance']:.0e}",
    ))  # fmt: skip
  header = (
    "switch", "ms", "against first", "in each turn", "temporary MiB",
    f"loss at {LOSS_STEPS}", f"off the reference ({reference:.5f})",
  )  # fmt: skip
  return table(header, rows)


def switches(config: run.Config) -> list[tuple[str, dict]]:
  """The switches that change something here."""
  return [
    (name, change)
    for name, change in SWITCHES.items()
    if changed(config, change) != config
    and _taken(config, change)
    and (config["steps"] or 0) % change.get("compute.steps_per_call", 1) == 0
  ]


def _taken(config: run.Config, change: dict[str, object]) -> bool:
  """Whether a change is of keys that something of the config takes."""
  known = {f"compute.{key}" for key in run.taken(config)}
  return all(key in known for key in change if key.startswith("compute."))


def changed(config: run.Config, change: dict[str, object]) -> run.Config:
  """The config with dotted keys replaced; BadConfig for a place of before."""
  new = json.loads(json.dumps(config))
  for key, value in change.items():
    *sections, last = key.split(".")
    part = new
    for section in sections:
      part = part[section]
    part[last] = value
  return run.sectioned(new)
