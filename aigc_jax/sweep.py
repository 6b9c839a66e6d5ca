"""Trains every point of a sweep, each in a work directory of its own.

  python -m aigc_jax.sweep --sweep=experiments/NAME/sweep.py --out=DIR
    [--parallel=N] [--launcher=local|slurm|"LINE {command}"] [--together=K]
    [--arm=A] [--dry_run] [--status] [--noretry]
  python -m aigc_jax.sweep ladder --config=C.py --budgets=1e14,3e14
    --sizes=2x64,4x128 [--pairs] [--rule=width] [--out=sweep.py]

A sweep file defines get_sweep(), which returns a Sweep of points made by the
functions of aigc_jax.scaling.space. A point is the ordinary training command
with a config that was written down once; its work directory is named by its
content. The same line again runs only what is missing or failed: after a kill,
or with more points, in another order, too. `report table DIR` compares them. A
point may be a branch of another, which it waits for (scaling/space.py).

--together=K: up to K points that differ in numbers only (seed, learning rate,
weight decay, b1, b2, init_std) are one program that takes all their steps. Each
is as it is alone but for rounding; its batches are the same to the bit.
--dry_run: what each point sets, costs and will take; nothing is written.
--status: what became of each. ladder: writes a sweep file, sizes of a model at
budgets of compute, counted exactly. Exit status: how many points failed (64
are 64 or more); 75 where it was stopped and none failed.
"""

import contextlib
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from aigc_jax import command, files, run
from aigc_jax.errors import BadConfig, Stopped, choose, nearest
from aigc_jax.planning.summary import table
from aigc_jax.scaling.sweeps import (
  joint_runs,
  launch,
  ledger,
  plan,
  progress,
  slurm,
  work,
)
from aigc_jax.scaling.sweeps import ladder as ladders
from aigc_jax.scaling.sweeps.ledger import DONE, FAILED, Entry, Index
from aigc_jax.scaling.sweeps.plan import Plan
from aigc_jax.terminal import counted
from aigc_jax.trainer.lock import Lock

# Flags of `sweep ladder`, and those of one way to run a sweep.
OF_LADDER = (
  "budgets", "sizes", "pairs", "rule", "tokens_per_parameter", "seeds",
)  # fmt: skip
OF_SWEEPS = (
  "sweep", "parallel", "launcher", "together", "joint", "arm", "dry_run",
  "status", "json", "retry", "bench", "submit", "sbatch", "point",
)  # fmt: skip
MOST_FAILED = 64  # as an exit status: what is above means something else
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(words: list[str]) -> int:
  """The command; the exit status."""
  values = flags.FLAGS
  if words:
    return choose(words[0], {"ladder": ladder_}, "sweep")(words[1:])
  if values.config is not None:
    raise BadConfig(
      "--config is of `sweep ladder`: a sweep file names its config, and a "
      "point may name another (arms(small={'config': 'configs/x.py'}))"
    )
  command.check_read(_unread())
  if values.joint:
    return joint_runs.train_all(values.joint)
  launch.check_line(values.launcher)
  if values.together < 1:
    raise BadConfig(f"--together={values.together}: expected 1 or more")
  if values.together > 1 and values.launcher == launch.SLURM:
    raise BadConfig(
      "--together is not for --launcher=slurm, where a task is one point"
    )
  shares = launch.shares(values.parallel or 1)
  if values.dry_run:
    return _dry_run()
  if not values.out:
    raise BadConfig("--out=DIR is missing: the folder of the sweep")
  if values.status:
    return _status(ledger.read_index(values.out))
  if values.point:
    return _point(ledger.read_index(values.out), values.point)
  found = plan.load(values.sweep) if values.sweep else None
  if found is not None:
    plan.of_arms(found.points, values.arm)
    _check_out(values.out)
  else:
    ledger.read_index(values.out)
  with _alone(values.out):
    index = (
      ledger.write(found, values.out)
      if found
      else ledger.read_index(values.out)
    )
    entries = plan.of_arms(index.entries, values.arm)
    _tell_strangers(index, values.out)
    if values.launcher == launch.SLURM:
      return _by_slurm(entries, files.expanded(values.out))
    return _run(entries, index, shares)


def _unread() -> dict[str, str]:
  """{flag: what it is of} of those that this way to run a sweep leaves."""
  values = flags.FLAGS
  found = dict.fromkeys(OF_LADDER, "`sweep ladder`")
  if not values.status:
    found["json"] = "--status"
  if not values.dry_run:
    found["bench"] = "--dry_run"
  if values.launcher != launch.SLURM:
    found |= dict.fromkeys(("submit", "sbatch"), "--launcher=slurm")
  return found


@contextlib.contextmanager
def _alone(out: str):
  """One sweep at a time in a folder."""
  folder = files.expanded(out).absolute()
  with files.storage(folder, "name another folder with --out=DIR"):
    folder.mkdir(parents=True, exist_ok=True)
  with Lock(folder):
    yield


def _check_out(out: str) -> None:
  """Raises BadConfig for a folder that holds something else."""
  folder = files.expanded(out)
  if folder.exists() and not folder.is_dir():
    raise BadConfig(f"--out={out} is a file: name the folder of a sweep")
  run.check_out(out)
  ours = (ledger.INDEX, "points", "runs")
  there = sorted(p.name for p in folder.glob("*")) if folder.exists() else []
  there = [name for name in there if name != "LOCK"]  # killed at its start
  if there and not any(name in ours for name in there):
    raise BadConfig(
      f"--out={out} holds other things ({', '.join(there[:3])}): name a folder "
      "that is new, or that of this sweep"
    )


def _tell_strangers(index: Index, out: str) -> None:
  left = ledger.strangers(index, files.expanded(out))
  if left:
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    print(
      "no more of this sweep, and left out of reports: "
      f"{counted(len(left), 'point')} in {out}: {', '.join(left[:3])}{more}"
    )


def _run(entries: Sequence[Entry], index: Index, shares) -> int:
  values, wish = flags.FLAGS, work.Wish()
  old = {number: signal.signal(number, wish) for number in SIGNALS}
  try:
    with progress.view_of(entries, index.metric) as view:
      work.carry_out(
        entries,
        launcher=values.launcher,
        shares=shares,
        view=view,
        wish=wish,
        metric=index.metric,
        retry=values.retry,
        together=values.together,
      )
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
  states = [ledger.state_of(entry).state for entry in entries]
  print(progress.summed_up(entries, index.metric))
  failed = states.count(FAILED)
  if failed:
    print(
      f"  python -m aigc_jax.sweep --out={shlex.quote(values.out)} --status"
    )
    return min(failed, MOST_FAILED)
  left = [
    entry
    for entry, state in zip(entries, states, strict=True)
    if state == ledger.WAITING
  ]
  if left and not wish.count:
    raise BadConfig(
      f"{counted(len(left), 'branch')} not run: {left[0].name}, for "
      f"{ledger.waits_for(left[0])}: run that point too (leave --arm out)"
    )
  if states.count(DONE) < len(states):
    raise Stopped(
      f"{counted(len(states) - states.count(DONE), 'point')} not done; what "
      "ran has saved: the same line again goes on"
    )
  out = values.out if values.out[0] != "-" else f"./{values.out}"
  print(f"  python -m aigc_jax.report table {shlex.quote(out)}")
  return 0


def _point(index: Index, name: str) -> int:
  """Runs one point here, as a task of an array does; its exit status."""
  names = [entry.name for entry in index.entries]
  if name not in names:
    raise BadConfig(
      f"--point={name}: the sweep has no such point{nearest(name, names)}"
    )
  entry = index.entries[names.index(name)]
  values, wish = flags.FLAGS, work.Wish()
  for number in SIGNALS:
    signal.signal(number, wish)
  work.carry_out(
    [entry],
    launcher=launch.LOCAL,
    shares=launch.shares(1),
    view=progress.Lines([entry], index.metric),
    wish=wish,
    metric=index.metric,
    retry=values.retry,
    patient=True,
  )
  state = ledger.state_of(entry)
  if state.state == DONE:
    return 0
  return state.status if state.status and state.status > 0 else 1


def _by_slurm(entries: Sequence[Entry], out: Path) -> int:
  values = flags.FLAGS
  left = [e for e in entries if ledger.state_of(e).state != DONE]
  names = {entry.name for entry in left}
  for entry in left:
    theirs = entry.trunk in names or ledger.can_begin(entry)
    if not theirs and ledger.trunk_state(entry) != ledger.RUNNING:
      raise BadConfig(
        f"{entry.name} would wait for ever: {ledger.waits_for(entry)}, and is "
        "no task of this array (leave --arm out)"
      )
  # Tasks begin in order: a branch takes no place that its trunk waits for.
  left.sort(key=lambda entry: bool(entry.trunk))
  if not left:
    print(f"{counted(len(entries), 'point')}, all done")
    return 0
  script = slurm.write(left, out, values.parallel or 0, values.sbatch)
  print(f"{script}: an array of {counted(len(left), 'task')}")
  if values.submit:
    print(slurm.submit(script))
  return 0


def _status(index: Index) -> int:
  entries = plan.of_arms(index.entries, flags.FLAGS.arm)
  states = [ledger.state_of(entry) for entry in entries]
  if flags.FLAGS.json:
    print(work.as_json(entries, index.metric))
  else:
    print(progress.status_table(entries, states, index.metric))
    print(f"\n{progress.summed_up(entries, index.metric)}")
    for entry, state in zip(entries, states, strict=True):
      if state.state == FAILED:
        print(f"\n{entry.name}: {ledger.line_of(entry)}")
        print("\n".join(f"  | {line}" for line in state.error))
    _tell_strangers(index, flags.FLAGS.out)
  return min(sum(s.state == FAILED for s in states), MOST_FAILED)


def _dry_run() -> int:
  """The table of what there is to run."""
  values = flags.FLAGS
  if not values.sweep:
    raise BadConfig("--sweep=PATH.py is missing: the file of a sweep")
  found = plan.load(values.sweep)
  points = plan.of_arms(found.points, values.arm)
  states = _states_on_disk(found, values.out)
  known = []
  if values.out and ledger.is_sweep(values.out):
    known = work.known_seconds(ledger.read_index(values.out).entries)
  rate = work.bench_rate(values.bench) if values.bench else None
  seconds = [work.predicted(p.cost, known, rate) for p in points]
  print(progress.plan_table(points, seconds, [states[p.name] for p in points]))
  if None in seconds:
    print(
      "\ntime: not known until a point of this sweep is finished, or by "
      "--bench=FILE.json of python -m aigc_jax.bench --config=..."
    )
  return 0


def _states_on_disk(found: Plan, out: str) -> dict[str, str]:
  """{name: its state} of all points; planned where nothing is on disk."""
  states = {
    point.name: ledger.WAITING if point.trunk else ledger.PLANNED
    for point in found.points
  }
  if out and ledger.is_sweep(out):
    for name, entry in ledger.found_of(found, out).items():
      states[name] = ledger.state_of(entry).state
  return states


def ladder_(words: list[str]) -> int:
  """Writes the sweep file of a ladder, or of an isoFLOP grid."""
  values = flags.FLAGS
  if words:
    raise BadConfig(f"unexpected {words[0]!r}: flags look like --name=value")
  command.check_read(dict.fromkeys(OF_SWEEPS, "sweeps, not of `sweep ladder`"))
  if values.config is None:
    raise BadConfig(
      "--config=PATH.py is missing: what all sizes have in common"
    )
  out = values.out or "sweep.py"
  if not out.endswith(".py"):
    raise BadConfig(f"--out={out}: expected the sweep file to write, PATH.py")
  command.check_out(out)
  made = ladders.ladder(
    values.config,
    budgets=values.budgets,
    sizes=values.sizes,
    pairs=values.pairs,
    rule=values.rule,
    ratios=values.tokens_per_parameter,
  )
  print(table(ladders.HEADER, ladders.rows(made)))
  for line in made.left_out:
    print(f"left out: {line}")
  text = ladders.source(
    made, command.config_given(), command.settings_given(), values.seeds
  )
  check_new(out, text)
  files.write_out(out, text)
  print(
    f"\n{out}\n  python -m aigc_jax.sweep --sweep={shlex.quote(out)} --out=DIR "
    "--dry_run"
  )
  return 0


def check_new(out: str, text: str) -> None:
  """Raises BadConfig for a file that is not ours to write over."""
  path = files.expanded(out)
  if path.is_file() and path.read_bytes() not in (b"", text.encode()):
    raise BadConfig(
      f"--out={out} is there and says something else, which may have been "
      "changed by hand: name a new file, or remove that one"
    )


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("sweep", "", "PATH.py or PATH.py:PRESET of a sweep")
  flags.DEFINE_string("out", "", "folder of the sweep (ladder: file to write)")
  flags.DEFINE_integer(
    "parallel", 0, "points at once; they divide the cores, or the GPUs"
  )
  flags.DEFINE_string(
    "launcher", launch.LOCAL, "local, slurm, or a line with {command}"
  )
  flags.DEFINE_integer("together", 1, "points in one program")
  flags.DEFINE_string("joint", "", "run the points in this file as one program")
  flags.DEFINE_multi_string("arm", [], "only the points of this arm")
  flags.DEFINE_bool("dry_run", False, "show what there is to run, and stop")
  flags.DEFINE_bool("status", False, "show what became of each point, and stop")
  flags.DEFINE_bool("json", False, "--status as JSON")
  flags.DEFINE_bool("retry", True, "run points again that failed")
  flags.DEFINE_string("bench", "", "JSON of `bench`, to predict times from")
  flags.DEFINE_bool("submit", True, "slurm: give the array to sbatch")
  flags.DEFINE_multi_string("sbatch", [], "slurm: an option of sbatch")
  flags.DEFINE_string("point", "", "run this point of --out alone")
  flags.DEFINE_list("budgets", [], "ladder: FLOPs of a run, 1e14,3e14")
  flags.DEFINE_list("sizes", [], "ladder: widths, or LAYERSxWIDTH: 2x64,4x128")
  flags.DEFINE_bool("pairs", False, "ladder: a budget for each size, not all")
  flags.DEFINE_string("rule", "width", f"ladder: {', '.join(ladders.RULES)}")
  flags.DEFINE_list(
    "tokens_per_parameter", [], "ladder: LOW,HIGH; others are left out"
  )
  flags.DEFINE_integer("seeds", 1, "ladder: of each point", lower_bound=1)


if __name__ == "__main__":
  # Points have the accelerators; what this process counts, any CPU counts.
  if not any(word.startswith("--joint") for word in sys.argv):
    jax.config.update("jax_platforms", "cpu")
  define_flags()
  command.main(main, config=True, words=True, alone=True)
