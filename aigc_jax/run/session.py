"""A session: a run from its config to its result, in one process.

The order of a start is a contract: what can be refused is refused before
anything is computed or written; the data is opened before the state is, and the
state comes from the run's own checkpoint, else from init_from, else from the
seed. Then the loop has it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from aigc_jax import chips, data
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.run.build import Run, build
from aigc_jax.run.defaults import filled
from aigc_jax.run.evaluation import (
  Place,
  check_evaluators,
  evaluations,
  evaluator,
  left_out,
)
from aigc_jax.run.inputs import check_inputs, note_inputs, open_stream
from aigc_jax.run.load import (
  frozen_of,
  note_older_average,
  place_of,
  read_frozen_of,
  read_frozen_parts,
  read_trained,
  steps_there,
  with_stats,
)
from aigc_jax.run.origin import (
  check_frozen_origins,
  check_origin,
  check_resumed,
  identity_in,
  note_edited,
  note_origin,
  note_scaled,
)
from aigc_jax.run.parts import with_parts
from aigc_jax.run.record import entries, fingerprints, note_identity, record
from aigc_jax.run.settings import (
  Config,
  config_in,
  fingerprint,
  provenance_in,
)
from aigc_jax.run.standing import Standing, going_on
from aigc_jax.terminal import counted
from aigc_jax.trainer import changes, faults, history, identity, provenance
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.journal import CUT, Journal, wandb_run
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.loop import check_calls, fit
from aigc_jax.trainer.profile import Profiler
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.together import all_or_none, same
from aigc_jax.trainer.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Options:
  """What a command line says of a session beside the config."""

  allow_change: Sequence[str] = ()
  allow_data_change: bool = False
  profile_steps: Sequence[str] = ()
  wandb: str = ""  # project of Weights & Biases, or nothing


@dataclasses.dataclass(frozen=True)
class Start:
  """The state that a session begins with, and where it is from.

  manifest: of the checkpoint, or None. purposely: differences to the model of
  init_from that were allowed. origins: {work directory: step} of the runs that
  parameters were read from.
  """

  state: object
  manifest: Mapping | None
  purposely: list[changes.Change]
  origins: Mapping[str, int]


class Session:
  """One run in its work directory; its steps are called in their order.

  plan() -> Run; open_data() -> fingerprints; train() -> result. `say` is given
  lines for people; `first` is whether this process is the one that writes.
  repeats: the step and the meta of the run that this one is to be once more.
  """

  keeper: type[Checkpoints] = Checkpoints

  def __init__(
    self,
    config: Config,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    *,
    stop: Stop,
    lock: Lock,
    watchdog: Watchdog,
    options: Options,
    say: Callable[[str], None],
    first: bool,
    repeats: Mapping | None = None,
  ):
    self.config, self.mesh, self.workdir = config, mesh, workdir
    self.stop, self.lock, self.watchdog = stop, lock, watchdog
    self.options, self.say, self.first = options, say, first
    self.repeats = repeats

  def plan(self) -> Run:
    """The run, built; refuses what no data and no checkpoint could mend."""
    _alike("configs", fingerprint(self.config))
    _alike("versions of the program or of JAX", provenance.program())
    with all_or_none():
      self.changed = changed_since(self.workdir, self.config, self.options)
      self.known = identity_of(self.workdir)
    _alike("run.json", self.known.id)
    self.run = build(self.config, self.mesh)
    with all_or_none():
      check_inputs(self.config)
      note_inputs(self.config)
      check_evaluators(self.config)
      check_frozen_origins(self.config)
      if not (self.workdir / "config.json").is_file():
        # Before the data, which may take long.
        check_origin(self.config, allowed=self.options.allow_change)
        note_origin(self.config)
        note_scaled(self.config)
    self.stop.check()
    self.run.advance()  # refuses a library that is not there
    return self.run

  def open_data(self) -> dict[str, str]:
    """Opens stream and evaluators; their fingerprints by config key."""
    with all_or_none():
      self.stream = open_stream(
        self.config, say=self.say, progress=self._preparing
      )
      _check_batch(self.stream, self.run)
      self.evaluators = self._evaluators()
    self.prints = fingerprints(self.stream, self.evaluators)
    for what, print_ in self.prints.items():
      _alike(f"data ({what})", print_)
    self.stop.check()
    return self.prints

  def train(self) -> dict:
    """Restores or begins, and trains to the end; the result."""
    events: list[dict] = []
    checkpoints = self._checkpoints(events)
    begun = self._start(checkpoints)
    state, manifest = begun.state, begun.manifest
    start = int(state.step)
    checkpoints.run = _named(self.known, manifest).going_on(start, self.workdir)
    original = identity.original_of(self.workdir, self.known)
    told, since = self._told_before(manifest)
    forked = changes.data_changes(
      told, self.prints, entries(self.config),
      self.options.allow_data_change, since,
    )  # fmt: skip
    at = going_on(self.workdir, manifest, self.run, self.stream)
    check_calls(start, at.run.steps, self.config["compute"]["steps_per_call"])
    self.say(at.epochs())
    with Journal(
      self.workdir,
      step=start,
      total_steps=at.run.steps,
      fence=self.lock.check,
      wandb=self._wandb(anew=bool(original)),
    ) as journal:
      for event in events:
        journal.event(**event)
      checkpoints.tell = journal.event
      if forked:
        journal.event("fork", start, old=forked, new=self.prints)
      if start:
        note_identity(self.workdir, self.known, checkpoints.run, journal)
      if original:
        self.say(
          f"a copy of {original}: from step {start} on they are two runs, and "
          "neither goes on from what the other saves"
        )
        journal.event("copied", start, origin=original)
      if at.derived:
        journal.event("derived", start, **at.derived)
      for change in begun.purposely:
        journal.event("origin_change", start, **dataclasses.asdict(change))
      return self._fit(at, begun, start, checkpoints, journal)

  def _fit(
    self, at: Standing, begun: Start, start: int, checkpoints, journal
  ) -> dict:
    """Records the start and hands everything to the loop."""
    r, stream, config = at.run, at.stream, self.config
    state, manifest = begun.state, begun.manifest
    meta, compiled = record(
      r,
      self.workdir,
      stream=stream,
      prints=self.prints,
      start=start,
      changed=self.changed + _another_run(self.known, manifest),
      ours=checkpoints.run,
      manifest=manifest,
      frozen=state.frozen,
      origins=begun.origins,
      journal=journal,
    )
    if self.first and stream.tokenizer is not None:
      data.save(stream.tokenizer, self.workdir / "tokenizer")
    if self.first and stream.about:
      journal.write("data.json", stream.about)
    calls = config["compute"]["steps_per_call"]
    asked = self.options.profile_steps
    with (
      Profiler(self.workdir / "profile", asked, r.steps, calls) as profiler,
      data.batches(
        stream, self.mesh, start, r.steps, per_call=calls
      ) as batches,
    ):
      _, result = fit(
        state,
        start=start,
        steps=r.steps,
        steps_per_call=calls,
        advance=self.advance(r),
        before_call=profiler.before,
        compiled=compiled,
        batches=batches,
        evaluate=functools.partial(_evaluate, self.evaluators, r.steps),
        due=lambda n: bool(_due(self.evaluators, r.steps, n)),
        checkpoints=checkpoints,
        meta=lambda n: meta | at.meta(n),
        journal=journal,
        stop=self.stop,
        watchdog=self.watchdog,
        log_every_steps=config["log"]["every_steps"],
        each=r.each,
        data_step=stream.data_step,
        peak_flops=chips.peak_flops(self.mesh),
        before=at.before,
      )
    return result

  def advance(self, r: Run) -> Callable:
    """What takes the steps of the loop: (state, batch) -> (state, metrics)."""
    return r.advance()

  def _preparing(self, *_) -> None:
    """Lets a process go that is asked to while it prepares its data."""
    faults.hit("prepare")
    self.stop.check_alone()

  def _checkpoints(self, events: list[dict]) -> Checkpoints:
    """Those of the run; what they tell before there is a journal, in events."""
    checkpoints = self.keeper(
      self.workdir / "checkpoints",
      **self.config["checkpoint"],
      fence=self.lock.check,
      tell=lambda kind, **fields: events.append(dict(kind=kind, **fields)),
      run=None if "run" in self.options.allow_change else self.known,
    )
    checkpoints.clean()
    self.watchdog.feed("restoring", self.watchdog.compile_seconds)
    return checkpoints

  def _start(self, checkpoints: Checkpoints) -> Start:
    """From the run's own checkpoint, from init_from, or from the seed."""
    r, allowed = self.run, self.options.allow_change
    check = functools.partial(check_resumed, r.config["model"], allowed)
    found = checkpoints.restore(r.state, check)
    if found is not None:
      state, manifest = found
      self.say(f"continuing from step {manifest['step']}")
      if state.average_stats is None and r.state.average_stats is not None:
        note_older_average(f"step {manifest['step']}")
        stats = jax.tree.map(jnp.copy, state.stats)
        state = state.replace(average_stats=stats)
      note_edited(self.workdir, manifest)
      if r.state.frozen is not None:
        frozen = read_frozen_of(
          manifest, r.config, r.model, r.mesh, r.state.frozen
        )
        state = state.replace(frozen=frozen)
      origins = manifest["meta"].get("origins", {})
      return Start(state, manifest, [], origins)
    where = r.config["init_from"]
    with all_or_none():
      begun = history.check_nothing_lost(self.workdir)
      changed = check_origin(r.config, self.stream.tokenizer, allowed)
      check_frozen_origins(r.config, self.stream.tokenizer)
    if begun:
      self.say(
        "this run ended before its first checkpoint: it begins again from step "
        f"0 ({counted(begun, 'row')} kept in {CUT})"
      )
    # A run that is repeated was begun from these steps of others.
    meant = {}
    if self.repeats is not None:
      meant = steps_there(self.repeats, r.config)
    state, steps = r.init(), {}
    if where:
      place = place_of(where)
      params, stats, step = read_trained(where, r, meant.get(place))
      self.say(f"parameters from {where}" + (f", step {step}" if step else ""))
      for change in changed:
        self.say(f"  of another model there: {change}")
      state, steps = state.replace(params=params, stats=stats), {place: step}
    if state.frozen is not None:
      if self.repeats is not None:
        _, also = frozen_of(
          self.repeats, r.config, r.model, r.mesh, r.state.frozen
        )
        steps = steps | also
      frozen, moved, read = read_frozen_parts(
        r.config, r.model, r.mesh, r.state.frozen, r.state.stats, steps,
        self.say,
      )  # fmt: skip
      stats, steps = with_stats(state.stats, moved), steps | read
      state = state.replace(frozen=frozen, stats=stats)
    if where or state.frozen is not None:  # it is another than it was begun as
      state = state.started()
    origins = {where: step for where, step in steps.items() if step}
    return Start(with_parts(r.config, state), None, changed, origins)

  def _told_before(self, manifest) -> tuple[dict | None, str]:
    """(what was recorded of the data, since when).

    By the checkpoint; without one by run.json, where the data was moved.
    """
    if manifest is not None:
      return manifest["meta"], f"step {manifest['step']}"
    moved = any(map(changes.moved, self.changed))
    if not moved or not (self.workdir / "run.json").is_file():
      return None, ""
    return provenance_in(self.workdir), "the start"

  def _wandb(self, anew: bool):
    if not self.options.wandb or not self.first:
      return None
    return wandb_run(self.workdir, self.options.wandb, self.config, anew)

  def _evaluators(self) -> dict:
    """{name: (every_steps, evaluator)} for the entries of config.evaluate."""

    def poll(name: str) -> None:
      self.watchdog.feed(f"evaluation {name!r}", self.watchdog.compile_seconds)
      faults.hit(f"evaluate/{name}")
      self.stop.check()

    say = _once(self.say)
    for name, why in left_out(self.config).items():
      say(f"evaluate.{name} is left out: {why}")
    return {
      name: evaluator(
        Place(
          name, self.run, self.stream.tokenizer, self.workdir,
          functools.partial(poll, name), say,
        ),
        entry,
      )
      for name, entry in evaluations(self.config).items()
    }  # fmt: skip


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
  """The same that says no line twice, as of a set that two measure."""
  said: set[str] = set()

  def new(line: str) -> None:
    if line not in said:
      said.add(line)
      say(line)

  return new


def _alike(what: str, text: str) -> None:
  """Refuses to train in processes that differ in this."""
  if not same(text):
    raise BadConfig(f"the processes of this run were given different {what}")


def changed_since(
  workdir: Path, config: Config, options: Options
) -> list[changes.Change]:
  """What differs from the run that is there; refuses what must not.

  One from before a key was there did what that says by default.
  """
  history.check_config(workdir)
  if not (workdir / "config.json").is_file():
    return []
  return changes.check(
    changes.changes(*filled([config_in(workdir), config])),
    options.allow_change,
    options.allow_data_change,
  )


def identity_of(workdir: Path) -> Identity:
  """That of the run which is there, without one where none is noted."""
  return identity_in(workdir) or Identity("")


def _check_batch(stream, r: Run) -> None:
  """The abstract batch that was planned with is the one the data gives."""
  given = {k: (v.shape, str(v.dtype)) for k, v in stream.spec.items()}
  planned = {k: (v.shape, str(v.dtype)) for k, v in r.batch.items()}
  if given != planned:
    raise BadConfig(f"the data gives {given}, but the step takes {planned}")


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


def _evaluate(evaluators, steps: int, step: int, state) -> dict | None:
  """The metrics of all evaluators that are due at this step, or None.

  A file that one of them cannot write does not end the run.
  """
  found = {}
  for measure in _due(evaluators, steps, step):
    try:
      found |= measure(step, state)
    except StorageFailure as error:
      logging.error("evaluation at step %d: %s", step, error)
  return found or None


def _due(evaluators, steps: int, step: int) -> list[Callable]:
  """Those that measure at this step."""
  return [
    measure
    for every, measure in evaluators.values()
    if step == steps or (every and step > 0 and step % every == 0)
  ]
