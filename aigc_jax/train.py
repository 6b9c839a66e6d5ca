"""Trains what a config describes, in a work directory.

  python -m aigc_jax.train --config=configs/quickstart.py --workdir=DIR

The same line again continues an interrupted run, and says so when it is done.
Any key of the config can be set: --config.optim.learning_rate=1e-3.

  python -m aigc_jax.train --repeat=DIR --workdir=NEW

runs what DIR holds once more, in NEW, and compares: exit status 0 where all
rows and states are equal to the bit, 80 where they are not.
"""

import dataclasses
import json
import os
import shlex
import signal
import tempfile
import threading
from pathlib import Path

from aigc_jax import early, memory
from aigc_jax.errors import BadConfig, NotRepeated, Stopped, StorageFailure

if __name__ == "__main__":
  memory.keep_freed()

  # First of all, as the imports below take seconds; `Stop` takes over later.
  # By a thread, which also hears while the main one waits in C++ for the other
  # processes to join.
  def leave() -> None:
    os.read(ear, 1)
    early.say("aigc_jax: stopped; run the same line again")
    os._exit(Stopped.code)

  ear, mouth = os.pipe()
  os.set_blocking(mouth, False)
  signal.set_wakeup_fd(mouth)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  threading.Thread(target=leave, daemon=True, name="early signals").start()

import jax
from absl import flags, logging

from aigc_jax import command, files, hf, run, terminal
from aigc_jax.planning import summary
from aigc_jax.sampling.uses import Use, use_of
from aigc_jax.scaling import repeat
from aigc_jax.terminal import counted
from aigc_jax.trainer import changes, faults, history
from aigc_jax.trainer.journal import (
  CUT,
  METRICS,
  Journal,
  copy_later,
)
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.stop import Stop, Wishes
from aigc_jax.trainer.together import all_or_none
from aigc_jax.trainer.watchdog import Watchdog

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("workdir", "", "folder of the run")
  flags.DEFINE_string("repeat", "", "work directory to run again and compare")
  flags.DEFINE_bool(
    "dry_run", False, "check the config and the plan; reads no data"
  )
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
  wishes = Wishes()

  def wait(number: int, _) -> None:
    early.append(number)
    if wishes.again():
      os._exit(Stopped.code)

  if jax.process_count() > 1:
    # They leave together: a signal waits until `Stop` can tell the others.
    signal.set_wakeup_fd(-1)
    for number in Stop.SIGNALS:
      signal.signal(number, wait)
  with all_or_none():
    _check_limits()
    found = _prepared()
  if found is None:
    return 0
  config, mesh, workdir, made = found
  limits = dict(
    step_seconds=FLAGS.step_limit, compile_seconds=FLAGS.compile_limit
  )
  with (
    Lock(workdir, steal=FLAGS.steal_lock, made=made) as lock,
    Stop(workdir) as stop,
    Watchdog(workdir, **limits) as watchdog,
    jax.set_mesh(mesh),
  ):
    for number in early[:1]:
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


def _check_limits() -> None:
  """Raises BadConfig for seconds that would end a run at once, or never."""
  for name in ("step_limit", "compile_limit"):
    if not FLAGS[name].value > 0:
      raise BadConfig(
        f"--{name}={FLAGS[name].value}: expected seconds above 0 (inf is none)"
      )


def _prepared() -> tuple | None:
  """(config, mesh, work directory, folders made for it), checked.

  None where nothing is to do.
  """
  config = _config()
  if FLAGS.print_config:
    print(json.dumps(config, indent=2))
    return None
  mesh = run.make_mesh(config)
  command.quiet_compiler()
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
  run.branch.check(workdir, config)
  if FLAGS.rewind is None and _finished(workdir, config, mesh):
    _check_repeated(workdir)
    return None
  made = _make(workdir)
  faults.enable(workdir)
  faults.hit("prepared")
  return config, mesh, workdir, made


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
    workdir = _from_here(workdir)
    raise NotRepeated(
      f"{workdir} is done, and it is not {FLAGS.repeat} again (above); what "
      f"else differs: python -m aigc_jax.report diff "
      f"{shlex.join([FLAGS.repeat, str(workdir)])}"
    )


def _make(workdir: Path) -> list[Path]:
  """Makes the folder; those that were not there, the topmost first."""
  run.check_out(workdir, "--workdir")
  above = (workdir, *workdir.parents)
  made = [folder for folder in above if not os.path.lexists(folder)][::-1]
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):  # several processes may ask
      pass
  except OSError as error:
    raise StorageFailure(
      f"--workdir={workdir} cannot be written ({error.strerror}): choose "
      "another folder or change its permissions"
    ) from None
  return made


def _finished(workdir: Path, config: run.Config, mesh) -> bool:
  """Whether the run is done already; says so."""
  if not all((workdir / f"{x}.json").is_file() for x in ("result", "config")):
    return False
  found = run.changed_since(workdir, config, _options())
  done = run.result_in(workdir)
  if not run.reached(config, mesh, done):
    return False
  gone = history.what_is_gone(workdir, done, run.identity_of(workdir))
  if gone:
    logging.warning("%s was finished, but %s", workdir, gone)
    return False
  if command.is_first():
    missing = history.rows_gone(workdir, done["step"], run.identity_of(workdir))
    if missing:
      logging.warning("%s", missing)
    print(
      f"The run in {workdir} is finished ({counted(done['step'], 'step')})."
    )
    if beyond := _beyond(workdir, config, done["step"]):
      print(beyond)
    for change in filter(changes.moved, found):
      print(f"What lies elsewhere now was not compared: {change}")
    print(footer(workdir, done, config))
  return True


def _beyond(workdir: Path, config: run.Config, step: int) -> str:
  """What is the case where a run has gone further than it is asked to now."""
  asked = config["steps"]
  if asked is None or asked >= step:
    return ""
  kept = history.checkpoints_in(workdir, run.identity_of(workdir)).steps()
  before = max((s for s in kept if s <= asked), default=None)
  shown = f"--workdir={shlex.quote(str(_from_here(workdir)))}"
  lines = [
    f"steps={asked} asks for fewer than it has taken: nothing is done, and its "
    "last checkpoint stays.",
    f"A run of {counted(asked, 'step')} from the start, with the schedule of "
    "so many: another --workdir.",
  ]
  if before is not None:
    lines += [
      f"The same run as it was at step {before}: python -m aigc_jax.evaluate "
      f"{shown} --step={before} (generate and export take --step too).",
      f"To go back to there and on from it: this line with --rewind={before}, "
      "then this line again.",
    ]
  return "\n".join(lines)


def _rewind(workdir: Path, lock: Lock, step: int) -> None:
  """Goes back to a checkpoint; what came after it is set aside."""
  if not command.is_first():
    return
  checkpoints = history.checkpoints_in(
    workdir, run.identity_of(workdir), fence=lock.check
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
  later = ", ".join(f"checkpoints/{s}.rewound-*" for s in gone)
  aside = f" (set aside: {later})" if later else ""
  print(
    f"{workdir} is back at step {step}{aside}: run it again without --rewind"
  )


def train(config, mesh, workdir: Path, stop, lock, watchdog) -> dict:
  """Everything between the lock and the footer; returns the result."""
  say = _say if command.is_first() else _silent
  with all_or_none():
    run.branch.begin(workdir, config, mesh, command.is_first(), say)
  options = run.branch.options_of(workdir, config, _options())
  origin = repeat.origin(FLAGS.repeat) if FLAGS.repeat else None
  session = run.Session(
    config, mesh, workdir, stop=stop, lock=lock, watchdog=watchdog,
    options=options, say=say, first=command.is_first(),
    repeats=origin and origin.trained,
  )  # fmt: skip
  if origin is not None:
    say(repeat.differences(origin, config, mesh.shape))
  say(summary.headline(session.plan()))
  prints = session.open_data()
  if origin is not None:
    tokenizer = session.stream.tokenizer
    words = tokenizer.fingerprint if tokenizer else None
    repeat.check_data(origin, prints, run.entries(config), words)
  result = session.train()
  say(footer(workdir, result, config))
  return result


def _options() -> run.Options:
  names = [field.name for field in dataclasses.fields(run.Options)]
  return run.Options(**{name: FLAGS[name].value for name in names})


def _say(text: str) -> None:
  """Prints a line. A pipe that is closed or a full disk ends no run."""
  print(text, flush=True)
  terminal.forget_loss()


def _silent(*_) -> None:
  """Says nothing: the processes other than the first."""


def _prompt(config: run.Config) -> str:
  """A prompt that fits the data: one of the run's own samples, or ""."""
  for entry in config["evaluate"].values():
    for prompt in entry["prompts"] if "prompts" in entry else ():
      if prompt:
        return prompt
  return ""


def _commands(workdir: Path, config: run.Config, step: int) -> list[str]:
  """The commands that can use a run of so many steps, whatever it is of."""
  shown = f"--workdir={shlex.quote(str(workdir))}"
  model = run.model_of(config)
  lines = [["evaluate", shown]]
  # A model of several roles is used by those of them that were trained.
  sections, learnt = {"": config["model"]}, {"": model}
  if config["model"]["kind"] == "roles":
    parts = config["model"]["parts"]
    sections = {n: parts[n] for n in parts if n not in config["frozen"]}
    learnt = {n: model.parts[n].model for n in sections}
  for name, part in learnt.items():
    if use := use_of(part):
      words = [f"--part={name}"] * bool(name)
      lines.insert(
        0, ["generate", shown, *words, *_flags(use, workdir, config, step)]
      )
      break
  for name, section in sections.items():
    if _has_a_family(config | {"model": section}):
      # An export to a folder that exists, of an earlier step, is refused.
      out = workdir / ("hf" if not (workdir / "hf").exists() else f"hf-{step}")
      words = [f"--part={name}"] * bool(name)
      out = f"--out={shlex.quote(str(out))}"
      lines.append(["export", shown, out, *words])
      break
  return [f"  python -m aigc_jax.{' '.join(words)}" for words in lines]


def _has_a_family(config: run.Config) -> bool:
  """Whether the model is one that can be exported."""
  keywords = run.keywords(config)
  kind = keywords.pop("kind")
  try:
    return bool(hf.choose_family(keywords, kind=kind))
  except BadConfig:
    return False


def _flags(use: Use, workdir: Path, config: run.Config, step: int) -> list[str]:
  """Those with which `generate` uses a model of so many steps so.

  An average of fewer steps than it reaches back is mostly of the start.
  """
  words, average = list(use.flags), config["optim"]["average"]
  example = run.example_of(config) if use.reads else None
  if use.reads == "audio" and example.audio:
    audio = shlex.quote(str(_from_here(Path(example.audio))))
    words = [word.replace("FILE.wav", audio) for word in words]
  if use.average and average and run.averaged_enough(average, step):
    words.insert(0, "--weights=average")
  text = example.text if use.reads == "text" else ""
  if prompt := _prompt(config) or text or use.prompt:
    words.append(f"--prompt={shlex.quote(prompt)}")
  if use.out:
    words.append(f"--out={shlex.quote(str(workdir / use.out))}")
  return words


def _from_here(path: Path) -> Path:
  """An absolute path as one would type it in this folder."""
  here = Path.cwd()
  return path.relative_to(here) if path.is_relative_to(here) else path


def footer(workdir: Path, result: dict, config: run.Config) -> str:
  """Results, where things are, what to try next: as one would type it here."""
  drawn = any((workdir / "samples").glob("*.png"))
  made = "images it drew" if drawn else "text it wrote"
  made = made if (workdir / "samples").is_dir() else ""
  workdir = _from_here(workdir)
  lines = ["", "Results"]
  scores = {
    name: terminal.score(value)
    for name, value in result.items()
    if name.startswith("eval/") and isinstance(value, int | float)
  }
  width = max(32, *map(len, scores), 0)
  lines += [f"  {name:<{width}} {score}" for name, score in scores.items()]
  lines += [
    "Files",
    f"  {workdir}/metrics.jsonl          every number",
    f"  {workdir}/checkpoints            {result['step']} is the last step",
    *([f"  {workdir}/samples                {made}"] if made else []),
    "Next",
    *_commands(workdir, config, result["step"]),
    f"  tensorboard --logdir={shlex.quote(str(workdir))}",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  command.main(main, config=True)
