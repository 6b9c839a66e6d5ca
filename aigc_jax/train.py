"""Trains what a config describes, in a work directory.

  python -m aigc_jax.train --config=configs/quickstart.py --workdir=DIR

The same line again continues an interrupted run, and says so when it is done.
Any key of the config can be set: --config.optim.learning_rate=1e-3.

  python -m aigc_jax.train --repeat=DIR --workdir=NEW

runs what DIR holds once more, in NEW, and compares: exit status 0 where all
rows and states are equal to the bit, 80 where they are not.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import memory
from aigc_jax.errors import BadConfig, NotRepeated, Stopped, StorageFailure

if __name__ == "__main__":
  memory.keep_freed()

  # First of all, as the imports below take seconds; `Stop` takes over later.
  # By a thread, which also hears while the main one waits in C++ for the other
  # processes to join.
  def leave() -> None:
    os.read(ear, 1)
    with contextlib.suppress(OSError):
      os.write(2, b"aigc_jax: stopped; run the same line again\n")
    os._exit(Stopped.code)

  ear, mouth = os.pipe()
  os.set_blocking(mouth, False)
  signal.set_wakeup_fd(mouth)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  threading.Thread(target=leave, daemon=True, name="early signals").start()

import jax
import jax.numpy as jnp
from absl import flags, logging

from aigc_jax import chips, command, data, files, run, tree
from aigc_jax.planning import summary
from aigc_jax.scaling import repeat
from aigc_jax.trainer import changes, faults, history, identity, provenance
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.journal import (
  CUT,
  METRICS,
  Journal,
  copy_later,
  wandb_run,
)
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.loop import check_calls, fit
from aigc_jax.trainer.profile import Profiler
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.together import all_or_none, same
from aigc_jax.trainer.watchdog import Watchdog

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("workdir", "", "folder of the run")
  flags.DEFINE_string("repeat", "", "work directory to run again and compare")
  flags.DEFINE_bool("dry_run", False, "check everything, compile nothing")
  flags.DEFINE_bool("print_config", False, "print the config and stop")
  flags.DEFINE_list(
    "allow_change", [], "keys that may differ on resume, or from init_from"
  )
  flags.DEFINE_bool("allow_data_change", False, "go on with other data")
  flags.DEFINE_integer(
    "rewind", None, "only go back to this step's checkpoint", lower_bound=0
  )
  flags.DEFINE_bool("steal_lock", False, "take over a lock held elsewhere")
  flags.DEFINE_list("profile_steps", [], "FIRST,LAST steps to profile")
  flags.DEFINE_string("wandb", "", "project of Weights & Biases; empty is off")
  flags.DEFINE_float("step_limit", 600.0, "seconds a step may take at most")
  flags.DEFINE_float("compile_limit", 3600.0, "seconds compiling may take")


def main() -> int:
  """The command; the exit status."""
  early: list[int] = []

  def wait(number: int, _) -> None:
    early.append(number)
    if len(early) > 1:
      os._exit(Stopped.code)

  if jax.process_count() > 1:
    # They leave together: a signal waits until `Stop` can tell the others.
    signal.set_wakeup_fd(-1)
    for number in Stop.SIGNALS:
      signal.signal(number, wait)
  with all_or_none():
    found = _prepared()
  if found is None:
    return 0
  config, mesh, workdir = found
  limits = dict(
    step_seconds=FLAGS.step_limit, compile_seconds=FLAGS.compile_limit
  )
  with (
    Lock(workdir, steal=FLAGS.steal_lock) as lock,
    Stop(workdir) as stop,
    Watchdog(workdir, **limits) as watchdog,
    jax.set_mesh(mesh),
  ):
    for number in early:
      stop.heard(number)
    if FLAGS.rewind is not None:
      with all_or_none():
        _rewind(workdir, lock, FLAGS.rewind)
    else:
      train(config, mesh, workdir, stop, lock, watchdog)
  if jax.process_count() > 1:  # nothing is left to be saved
    for number in Stop.SIGNALS:
      signal.signal(number, lambda *_: os._exit(Stopped.code))
  if FLAGS.rewind is None:
    with all_or_none():
      _check_repeated(workdir)
  return 0


def _prepared() -> tuple | None:
  """(config, mesh, work directory), checked; None where nothing is to do."""
  config = _config()
  if FLAGS.print_config:
    print(json.dumps(config, indent=2))
    return None
  mesh = run.make_mesh(config)
  if FLAGS.dry_run:
    print(summary.describe(config, mesh, FLAGS.allow_change))
    return None
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR is missing: the folder of the run")
  run.check_workdir(config, FLAGS.workdir)
  workdir = files.expanded(FLAGS.workdir).absolute()
  files.expanded(workdir)  # the folder that this process is in may be no text
  if FLAGS.repeat:
    repeat.check_place(repeat.origin(FLAGS.repeat), workdir)
  if FLAGS.rewind is None and _finished(workdir, config, mesh):
    _check_repeated(workdir)
    return None
  _make(workdir)
  faults.enable(workdir)
  faults.hit("prepared")
  return config, mesh, workdir


def _config() -> run.Config:
  """That of --config, or of the run that is repeated; checked."""
  if not FLAGS.repeat:
    if FLAGS.config is None:
      raise BadConfig(
        "--config=PATH.py is missing, such as configs/quickstart.py"
      )
    return run.read(FLAGS.config)
  if FLAGS.config is not None:
    raise BadConfig(
      f"--repeat={FLAGS.repeat} takes the config of that run: leave --config "
      "out (keys may still be set, as --config.data.path=PATH)"
    )
  return run.repeated(FLAGS.repeat, command.settings_given())


def _check_repeated(workdir: Path) -> None:
  """Compares a run that is done with the one it repeats, if it does.

  Raises NotRepeated where they differ.
  """
  if not FLAGS.repeat or not command.is_first():
    return
  found = repeat.outcome(FLAGS.repeat, workdir)
  print(f"{repeat.as_text(found)}", flush=True)
  if not found.equal:
    raise NotRepeated(
      f"{workdir} is done, and it is not {FLAGS.repeat} again (above); what "
      f"else differs: python -m aigc_jax.report diff "
      f"{shlex.join([FLAGS.repeat, str(workdir)])}"
    )


def _make(workdir: Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):  # several processes may ask
      pass
  except OSError as error:
    raise StorageFailure(
      f"--workdir={workdir} cannot be written ({error.strerror}): choose "
      "another folder or change its permissions"
    ) from None


def _finished(workdir: Path, config: run.Config, mesh) -> bool:
  """Whether the run is done already; says so."""
  if not all((workdir / f"{x}.json").is_file() for x in ("result", "config")):
    return False
  found = changes.check(
    changes.changes(run.config_in(workdir), config),
    FLAGS.allow_change,
    FLAGS.allow_data_change,
  )
  done = run.result_in(workdir)
  if not run.reached(config, mesh, done):
    return False
  gone = history.what_is_gone(workdir, done, _identity(workdir))
  if gone:
    logging.warning("%s was finished, but %s", workdir, gone)
    return False
  if command.is_first():
    missing = history.rows_gone(workdir, done["step"], _identity(workdir))
    if missing:
      logging.warning("%s", missing)
    print(f"The run in {workdir} is finished ({done['step']} steps).")
    for change in filter(changes.moved, found):
      print(f"Data that lies elsewhere now was not compared: {change}")
    print(footer(workdir, done, config))
  return True


def _rewind(workdir: Path, lock: Lock, step: int) -> None:
  """Goes back to a checkpoint; what came after it is set aside."""
  if not command.is_first():
    return
  checkpoints = history.checkpoints_in(
    workdir, _identity(workdir), fence=lock.check
  )
  checkpoints.check_whole(step)
  # Before anything is changed, as there may be no room for them.
  copy_later(workdir / METRICS, step, workdir / CUT)
  # Then this, so that a run whose end is gone never counts as finished.
  result = workdir / "result.json"
  try:
    if result.exists():
      name = f"result.{run.result_in(workdir).get('step', 0)}.rewound"
      others = len(list(workdir.glob(f"{name}*")))
      os.rename(result, workdir / f"{name}{f'.{others}' * bool(others)}.json")
    gone = checkpoints.rewind(step)
  except OSError as error:
    raise StorageFailure(
      f"{workdir} cannot be changed: {error.strerror}"
    ) from None
  with Journal(
    workdir, step=step, tensorboard=False, fence=lock.check
  ) as journal:
    journal.event("rewind", step, set_aside=gone)
  print(f"{workdir} is back at step {step}: run it again without --rewind")


def train(config, mesh, workdir: Path, stop, lock, watchdog) -> dict:
  """Everything between the lock and the footer; returns the result."""
  say = _say if command.is_first() else _silent
  origin = repeat.origin(FLAGS.repeat) if FLAGS.repeat else None
  if origin is not None:
    say(repeat.differences(origin, config))
  _alike("configs", run.fingerprint(config))
  _alike("versions of the program or of JAX", provenance.program())
  with all_or_none():
    changed = _changed(workdir, config)
    known = _identity(workdir)
  _alike("run.json", known.id)
  r = run.build(config, mesh)
  with all_or_none():
    run.check_inputs(config)
    run.check_evaluators(config)
    if not (workdir / "config.json").is_file():
      # Before the data, which may take long.
      run.check_origin(config, allowed=FLAGS.allow_change)
  stop.check()
  say(summary.headline(r))
  r.advance()  # refuses a library that is not there, before the data
  with all_or_none():
    stream = run.open_stream(config, say=say, progress=_preparing(stop))
    _check_batch(stream, r)
    evaluators = _evaluators(r, stream.tokenizer, workdir, stop, watchdog, say)
  prints = _fingerprints(stream, evaluators)
  for what, fingerprint in prints.items():
    _alike(f"data ({what})", fingerprint)
  if origin is not None:
    words = stream.tokenizer.fingerprint if stream.tokenizer else None
    repeat.check_data(origin, prints, _entries(config), words)
  stop.check()
  events: list[dict] = []
  checkpoints = Checkpoints(
    workdir / "checkpoints",
    **config["checkpoint"],
    fence=lock.check,
    tell=lambda kind, **fields: events.append(dict(kind=kind, **fields)),
    run=None if "run" in FLAGS.allow_change else known,
  )
  checkpoints.clean()
  watchdog.feed("restoring", watchdog.compile_seconds)
  state, manifest, purposely = _start(
    r, workdir, checkpoints, stream.tokenizer, say
  )
  start = int(state.step)
  checkpoints.run = _named(known, manifest).going_on(start, workdir)
  original = identity.original_of(workdir, known)
  told, since = _told_before(workdir, manifest, changed)
  forked = changes.data_changes(
    told, prints, _entries(config), FLAGS.allow_data_change, since
  )
  at = run.going_on(workdir, manifest, r, stream)
  r, stream = at.run, at.stream
  check_calls(start, r.steps, config["steps_per_call"])
  say(at.epochs())
  advance = r.advance()
  with Journal(
    workdir,
    step=start,
    total_steps=r.steps,
    fence=lock.check,
    wandb=_wandb(workdir, config, anew=bool(original)),
  ) as journal:
    for event in events:
      journal.event(**event)
    checkpoints.tell = journal.event
    if forked:
      journal.event("fork", start, old=forked, new=prints)
    changed = changed + _another_run(known, manifest)
    if start:
      _note_identity(workdir, known, checkpoints.run, journal)
    if original:
      say(
        f"a copy of {original}: from step {start} on they are two runs, and "
        "neither goes on from what the other saves"
      )
      journal.event("copied", start, origin=original)
    if at.derived:
      journal.event("derived", start, **at.derived)
    for change in purposely:
      journal.event("origin_change", start, **dataclasses.asdict(change))
    meta, about = _record(
      r, workdir, stream.tokenizer, prints, start, changed, checkpoints.run,
      manifest, journal, state.frozen,
    )  # fmt: skip
    if command.is_first():
      if stream.tokenizer is not None:
        data.save(stream.tokenizer, workdir / "tokenizer")
      if stream.about:
        journal.write("data.json", stream.about)
    with (
      data.batches(
        stream, mesh, start, r.steps, per_call=config["steps_per_call"]
      ) as batches,
      Profiler(workdir / "profile", FLAGS.profile_steps) as profiler,
    ):
      state, result = fit(
        state,
        start=start,
        steps=r.steps,
        steps_per_call=config["steps_per_call"],
        advance=advance,
        before_call=profiler.before,
        compiled=about,
        batches=batches,
        evaluate=functools.partial(_evaluate, evaluators, r.steps),
        checkpoints=checkpoints,
        meta=lambda n: meta | at.meta(n),
        journal=journal,
        stop=stop,
        watchdog=watchdog,
        log_every_steps=config["log"]["every_steps"],
        each=r.each,
        peak_flops=chips.peak_flops(mesh),
        before=at.before,
      )
  say(footer(workdir, result, config))
  return result


def _told_before(workdir: Path, manifest, changed) -> tuple[dict | None, str]:
  """(what was recorded of the data, since when).

  By the checkpoint; without one by run.json, where the data was moved.
  """
  if manifest is not None:
    return manifest["meta"], f"step {manifest['step']}"
  moved = any(map(changes.moved, changed))
  if not moved or not (workdir / "run.json").is_file():
    return None, ""
  return run.provenance_in(workdir), "the start"


def _preparing(stop: Stop):
  """Lets a process go that is asked to while it prepares its data."""

  def progress(*_):
    faults.hit("prepare")
    stop.check_alone()

  return progress


def _say(text: str) -> None:
  """Prints a line. A pipe that is closed or a full disk ends no run."""
  try:
    print(text, flush=True)
  except OSError:
    # What is buffered would fail again at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _silent(*_) -> None:
  """Says nothing: the processes other than the first."""


def _alike(what: str, text: str) -> None:
  """Refuses to train in processes that differ in this."""
  if not same(text):
    raise BadConfig(f"the processes of this run were given different {what}")


def _changed(workdir: Path, config: run.Config) -> list[changes.Change]:
  """What differs from the run that is there; refuses what must not."""
  history.check_config(workdir)
  if not (workdir / "config.json").is_file():
    return []
  return changes.check(
    changes.changes(run.config_in(workdir), config),
    FLAGS.allow_change,
    FLAGS.allow_data_change,
  )


def _check_batch(stream, r: run.Run) -> None:
  """The abstract batch that was planned with is the one the data gives."""
  given = {k: (v.shape, str(v.dtype)) for k, v in stream.spec.items()}
  planned = {k: (v.shape, str(v.dtype)) for k, v in r.batch.items()}
  if given != planned:
    raise BadConfig(f"the data gives {given}, but the step takes {planned}")


def _identity(workdir: Path) -> Identity:
  """That of the run which is there, without one where none is noted."""
  return run.identity_in(workdir) or Identity("")


def _named(known: Identity, manifest: Mapping | None) -> Identity:
  """`known`, or a new one for a run that has none."""
  if known.id:
    return known
  return identity.new(since=manifest["step"] if manifest else None)


def _another_run(known: Identity, manifest) -> list[changes.Change]:
  """The change to journal where another run's checkpoint is gone on from."""
  if manifest is None or known.owns(manifest):
    return []
  return [changes.Change("run", manifest.get("run"), known.id or None)]


def _note_identity(
  workdir: Path, known: Identity, ours: Identity, journal: Journal
) -> None:
  """Puts what the run is from now on into its run.json, before it saves."""
  there = (workdir / "run.json").is_file()
  about = run.provenance_in(workdir) if there else {}
  journal.write("run.json", about | {"run": ours.as_json()})
  if known.id:
    return
  journal.event("identity", ours.since, run=ours.id)
  logging.warning(
    "this run is from before runs had an identity: it is %s from now on",
    ours.id,
  )


def _start(
  r: run.Run, workdir: Path, checkpoints: Checkpoints, tokenizer, say
) -> tuple:
  """(state, manifest or None, changes): own checkpoint, init_from, or scratch.

  changes: of the model, made on purpose on the way from init_from.
  """
  found = checkpoints.restore(
    r.state,
    functools.partial(run.check_resumed, r.config["model"], FLAGS.allow_change),
  )
  if found is not None:
    say(f"continuing from step {found[1]['step']}")
    state, manifest = found
    if r.state.frozen is not None:
      frozen = _frozen(r)
      run.check_frozen(frozen, manifest)
      state = state.replace(frozen=frozen)
    return state, manifest, []
  where = r.config["init_from"]
  with all_or_none():
    begun = history.check_nothing_lost(workdir)
    changed = run.check_origin(r.config, tokenizer, FLAGS.allow_change)
  if begun:
    say(
      "this run ended before its first checkpoint: it begins again from step 0 "
      f"({begun} rows are kept in {CUT})"
    )
  state = r.init()
  if where:
    params, step = run.read_trained(where, r)
    say(f"parameters from {where}" + (f", step {step}" if step else ""))
    for change in changed:
      say(f"  of another model there: {change}")
    state = state.replace(params=params)
    if state.average is not None:
      state = state.replace(average=jax.tree.map(jnp.copy, params))
  if state.frozen is not None:
    state = state.replace(frozen=_frozen(r))
  return state, None, changed


def _frozen(r: run.Run):
  """The frozen parts, from where the config has them."""
  return run.read_frozen(r.config, r.model, r.mesh, r.state.frozen)


def _fingerprints(stream, evaluators: dict) -> dict[str, str]:
  """Of the training data and of every held-out set, by their config keys."""
  return {"data": stream.fingerprint} | {
    f"evaluate.{name}": evaluator.fingerprint
    for name, (_, evaluator) in evaluators.items()
    if hasattr(evaluator, "fingerprint")
  }


def _entries(config: run.Config) -> dict[str, str]:
  """Hashes of how each held-out set is configured."""
  return {
    f"evaluate.{name}": run.fingerprint(entry)
    for name, entry in config["evaluate"].items()
  }


def _record(
  r,
  workdir,
  tokenizer,
  prints,
  start,
  changed,
  ours,
  manifest,
  journal,
  frozen,
) -> tuple:
  """config.json, run.json and the restart.

  Returns the checkpoints' meta, and what notes the hash of the compiled step in
  it and beside the rest. run.json is of the first start, run.<step>.json of a
  later one. What is not as it was in `manifest` is journalled.
  """
  config = r.config
  meta = {
    "config_sha256": run.fingerprint(config),
    "data_fingerprint": prints["data"],
    "heldout_fingerprints": {k: x for k, x in prints.items() if k != "data"},
    "heldout_entries": _entries(config),
    "each_step": r.each.as_meta(),
  }
  if tokenizer is not None:
    meta["tokenizer_fingerprint"] = tokenizer.fingerprint
  if frozen is not None:
    meta["frozen_digest"] = run.frozen_digest(frozen)
  about = provenance.describe(
    argv=sys.argv,
    mesh=dict(r.mesh.shape),
    run=ours.as_json(),
    parameters=tree.count(r.state.params),
    flops_per_step=r.flops_per_step,
    seed=config["seed"],
    **meta,
  )
  if start and (workdir / "config.json").is_file() and changed:
    journal.write(f"config.before-{start}.json", run.config_in(workdir))
  for change in changed:
    journal.event(
      "change", start, key=change.key, old=change.old, new=change.new
    )
  journal.event("restart" if start else "start", start, **meta)
  name = f"run.{start}.json" if start else "run.json"

  meta |= {
    "model": config["model"],
    "packages": about["packages"],
    "code_sha256": about["code"]["sha256"],
    "numerics": provenance.numerics(),
  }

  def with_program(sha256: str) -> None:
    meta["hlo_sha256"] = sha256
    journal.write(name, about | {"hlo_sha256": sha256})
    _same_program(manifest, meta, ("hlo_sha256",), journal)

  journal.write("config.json", config)
  journal.config(start, config)
  journal.write(name, about)
  _same_program(
    manifest, meta, ("packages", "code_sha256", "numerics"), journal
  )
  return meta, with_program


def _same_program(manifest, meta, keys, journal: Journal) -> None:
  """Tells what of the program is not as it was: that may change results."""
  if manifest is None:
    return
  for change in history.program_changes(manifest, meta, keys):
    journal.event("change", manifest["step"], key=change.key, old=change.old,
                  new=change.new)  # fmt: skip


def _wandb(workdir: Path, config: run.Config, anew: bool):
  if not FLAGS.wandb or not command.is_first():
    return None
  return wandb_run(workdir, FLAGS.wandb, config, anew)


def _evaluators(r: run.Run, tokenizer, workdir, stop, watchdog, say) -> dict:
  """{name: (every_steps, evaluator)} for the entries of config.evaluate."""

  def poll(name: str) -> None:
    watchdog.feed(f"evaluation {name!r}", watchdog.compile_seconds)
    faults.hit(f"evaluate/{name}")
    stop.check()

  entries = run.evaluations(r.config)
  for name in r.config["evaluate"]:
    if name not in entries:
      say(
        f"evaluate.{name} is left out: data.validation=0 holds nothing out "
        "(--config.data.validation_path=FILE measures text of your own)"
      )
  return {
    name: run.evaluator(
      run.Place(
        name, r, tokenizer, workdir, functools.partial(poll, name), say
      ),
      entry,
    )
    for name, entry in entries.items()
  }


def _evaluate(evaluators, steps: int, step: int, state) -> dict | None:
  """The metrics of all evaluators that are due at this step, or None.

  A file that one of them cannot write does not end the run.
  """
  found = {}
  for every, evaluator in evaluators.values():
    at_end = step == steps
    if at_end or (every and step > 0 and step % every == 0):
      try:
        found |= evaluator(step, state)
      except StorageFailure as error:
        logging.error("evaluation at step %d: %s", step, error)
  return found or None


def _prompt(config: run.Config) -> str:
  """The flag of a prompt that fits the data: one of the run's own samples.

  Without any, nothing: then the model begins by itself.
  """
  for entry in config["evaluate"].values():
    for prompt in entry["prompts"] if "prompts" in entry else ():
      if prompt:
        return f" --prompt={shlex.quote(prompt)}"
  return ""


def footer(workdir: Path, result: dict, config: run.Config) -> str:
  """Results, where things are, what to try next: as one would type it here."""
  has_samples = (workdir / "samples").is_dir()
  if workdir.is_relative_to(Path.cwd()):
    workdir = workdir.relative_to(Path.cwd())
  quoted = shlex.quote(str(workdir))
  lines = ["", "Results"]
  for name, value in result.items():
    if name.startswith("eval/") and isinstance(value, int | float):
      lines.append(f"  {name:<32} {value:.4f}")
  lines += [
    "Files",
    f"  {workdir}/metrics.jsonl          every number",
    f"  {workdir}/checkpoints            {result['step']} is the last step",
    *([f"  {workdir}/samples                text it wrote"] * has_samples),
    "Next",
    f"  python -m aigc_jax.generate --workdir={quoted}{_prompt(config)}",
    f"  python -m aigc_jax.evaluate --workdir={quoted}",
    f"  python -m aigc_jax.export --workdir={quoted} "
    f"--out={shlex.quote(str(workdir / 'hf'))}",
    f"  tensorboard --logdir={quoted}",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  with contextlib.suppress(BrokenPipeError):
    command.main(main, config=True)
