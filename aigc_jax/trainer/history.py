"""What a work directory tells of its run's past, before the run goes on."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import logging

from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.trainer import changes, journal
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity

# Events that are told only where a checkpoint is whole on the disk.
AFTER_A_SAVE = ("save", "stopped", "finished", "rewind")


def checkpoints_in(workdir: Path, run: Identity | None, **changed):
  """The checkpoints of a work directory, to be read; none is ever due."""
  settings = dict(every_steps=None, keep=1, keep_every_steps=None) | changed
  return Checkpoints(workdir / "checkpoints", run=run, **settings)


def check_config(workdir: Path) -> None:
  """Raises BadConfig where checkpoints lie beside no config.json."""
  if (workdir / "config.json").exists():
    return
  steps = checkpoints_in(workdir, None).steps()
  if steps:
    raise BadConfig(
      f"{workdir} has checkpoints (the last of step {steps[-1]}) and no "
      "config.json that says of what: put it back (the line of that run, with "
      f"--print_config > {workdir}/config.json, makes one), or choose another "
      "--workdir"
    )


def check_nothing_lost(workdir: Path) -> int:
  """Raises StorageFailure where a run without checkpoints has saved some.

  It would begin again from step 0, and its rows would be cut. Returns how many
  rows there are of a run that ended before its first checkpoint.
  """
  told = _told_of_a_save(workdir)
  if told:
    raise StorageFailure(
      f"{workdir}/checkpoints holds no checkpoint, but {told}. Put them back, "
      "or choose another --workdir: a run never begins again by itself. (To "
      "begin again here, move everything in this folder away)"
    )
  rows = journal.rows(workdir / journal.METRICS)
  return sum(1 for row in rows if row.get("step"))


def _told_of_a_save(workdir: Path) -> str:
  """What says that there was a checkpoint; "" where nothing does."""
  if (workdir / "result.json").exists():
    return "a result.json says that the run was finished"
  begun = False
  for row in journal.rows(workdir / journal.EVENTS, journal.EVENT):
    kind, step = row.get("event"), row.get("step")
    begun |= kind in ("start", "restart")
    later = kind == "restart" and bool(step)
    if kind in AFTER_A_SAVE or later:
      return f"{journal.EVENTS} tells of one of step {step} ({kind})"
  rows = journal.rows(workdir / journal.METRICS)
  if rows and not begun:
    return (
      f"{journal.METRICS} has {len(rows)} rows, and the {journal.EVENTS} that "
      "would tell of one is gone"
    )
  return ""


def what_is_gone(workdir: Path, result: Mapping, run: Identity) -> str:
  """What of a finished run is not there any more; "" where all is.

  result: its result.json.
  """
  step, digest = result.get("step"), result.get("digest")
  saved = checkpoints_in(workdir, run)
  content = saved.manifest(step) if step in saved.steps() else None
  if content is None:
    return f"the checkpoint of step {step} is gone or not whole"
  if digest is not None and content["digest"] != digest:
    return f"the checkpoint of step {step} is not the one that was finished"
  return ""


def rows_gone(workdir: Path, step: int, run: Identity) -> str:
  """What metrics.jsonl lacks of the rows up to a checkpoint; "" for nothing."""
  content = checkpoints_in(workdir, run).manifest(step) or {"meta": {}}
  then = content["meta"].get("rows", {})
  return journal.what_is_gone(workdir, step, then)


def program_changes(
  manifest: Mapping,
  now: Mapping,
  keys: tuple[str, ...],
  meant: Iterable[changes.Change] = (),
) -> list[changes.Change]:
  """What of the meta named by `keys` is not as when a checkpoint was saved.

  What an older checkpoint does not have is not compared. Told on the console;
  the journal is the caller's. meant: keys of the config that were changed: with
  those that are a part of it the compiled step is another, as it has to be.
  """
  was = manifest["meta"]
  known = [k for k in keys if was.get(k) is not None and now.get(k) is not None]
  found = changes.changes(
    {k: was[k] for k in known}, {k: now[k] for k in known}
  )
  meant = [change.key for change in meant if changes.compiled(change)]
  if meant and [change.key for change in found] == ["hlo_sha256"]:
    logging.warning(
      "the compiled step is another than that of step %d, as it has to be: the "
      "numbers of %s are a part of it",
      manifest["step"], ", ".join(meant),
    )  # fmt: skip
  elif found:
    logging.warning(
      "not the program of step %d any more, so results may differ: %s",
      manifest["step"],
      ", ".join(map(str, found[:10])),
    )
  return found
