"""A run again, from its work directory alone: is it the same run?

Before it starts: what of the program and the machine is not as it was, and
that the data is. After its end: every row and every state that both kept.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import files, run
from aigc_jax.errors import BadConfig
from aigc_jax.scaling import compare
from aigc_jax.terminal import counted
from aigc_jax.trainer import changes, history, provenance
from aigc_jax.trainer.journal import EVENT, EVENTS, rows

WORDS = {"code_sha256": "code", "numerics": "machine and settings"}


@dataclasses.dataclass(frozen=True)
class Origin:
  """The run that is repeated.

  step, then: of its newest checkpoint, and what that says of program and data;
  or 0 and its run.json.
  """

  path: Path
  config: run.Config
  about: Mapping
  then: Mapping
  changed: tuple[str, ...]  # keys that changed while it ran
  step: int = 0

  @property
  def trained(self) -> dict:
    """As a manifest has them."""
    return {"step": self.step, "meta": self.then}


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How far two runs are one.

  alone: steps up to `until` that only one of the two has rows of. states: of
  the steps that both saved, None where all is equal, else names of leaves.
  """

  rows: int
  parts_at: int | None  # first step with a difference
  parts_in: tuple[str, ...]  # the names that differ there
  alone: tuple[int, ...]
  until: int
  states: Mapping[int, tuple[str, ...] | None]
  finished: bool  # the run that is repeated

  @property
  def equal(self) -> bool:
    """Whether all that can be compared is equal, and anything can."""
    same = self.parts_at is None and not self.alone and self.rows > 0
    return same and not any(x is not None for x in self.states.values())


def origin(where: str | Path) -> Origin:
  """The run in a work directory. Raises BadConfig where there is none."""
  path = files.expanded(where)
  config, about = run.config_in(path), run.provenance_in(path)
  saved = _manifests(path)
  then = saved[max(saved)]["meta"] if saved else dict(about)
  if not saved and "sha256" in about.get("code", {}):
    then["code_sha256"] = about["code"]["sha256"]
  told = rows(path / EVENTS, EVENT)
  changed = {
    str(row.get("key")) for row in told if row.get("event") == "change"
  }
  step = max(saved, default=0)
  return Origin(path, config, about, then, tuple(sorted(changed)), step)


def check_place(where: Origin, workdir: Path) -> None:
  """Raises BadConfig where a run would be repeated on top of itself."""
  if os.path.realpath(where.path) == os.path.realpath(workdir):
    raise BadConfig(
      f"--repeat={where.path} needs another --workdir: a run is repeated "
      "beside itself, to be compared"
    )


def differences(
  where: Origin, config: run.Config, mesh: Mapping[str, int]
) -> str:
  """What is not as it was, in lines; `config` and `mesh` are those of now."""
  here = provenance.code(Path(provenance.__file__).parents[1])
  now = {
    "packages": provenance.packages(),
    "code_sha256": here["sha256"],
    "numerics": provenance.numerics(),
    "devices": provenance.devices(mesh),
  }
  recorded = where.about.get("jax", {})
  then = dict(where.then)
  then["devices"] = {k: recorded[k] for k in now["devices"] if k in recorded}
  found = {"config": changes.changes(where.config, config)}
  for key in now:
    if then.get(key):
      found[key] = changes.changes({key: then[key]}, {key: now[key]})
    else:
      found[key] = None
  commits = (where.about.get("code", {}).get("commit"), here["commit"])
  lines = [f"Repeating {where.path}"]
  for key, differing in found.items():
    what = WORDS.get(key, key)
    if differing is None:
      lines.append(f"  {what}: not recorded")
    elif not differing:
      lines.append(f"  {what}: the same")
    elif key == "code_sha256":
      old, new = (str(commit)[:12] for commit in commits)
      lines.append(f"  code: not the same (commit {old}, here {new})")
    else:
      lines.append(f"  {what}: " + "; ".join(map(str, differing[:20])))
  if where.changed:
    lines.append(
      "  it was changed while it ran, so rows from before may differ: "
      + ", ".join(where.changed[:20])
    )
  return "\n".join(lines)


def check_data(
  where: Origin,
  prints: Mapping[str, str],
  entries: Mapping[str, str],
  tokenizer: str,
) -> None:
  """Refuses to repeat a run with other data, or another tokenizer.

  prints, entries: as `changes.data_changes` takes them. tokenizer: the
  fingerprint of the one here. Raises BadConfig by name.
  """
  words, now = where.then.get("tokenizer_fingerprint"), dict(prints)
  was = {}
  if "data_fingerprint" in where.then:
    was = changes.data_changes(where.then, prints, entries, True, "")
  if words is not None and words != tokenizer:
    was["tokenizer"], now["tokenizer"] = words, tokenizer
  if was:
    lines = (f"\n  {k}: {old[:12]} -> {now[k][:12]}" for k, old in was.items())
    raise BadConfig(
      f"the data here is not what {where.path} was trained on, so it cannot be "
      "repeated. Put its files back, or say where they are "
      "(--config.data.path=PATH), and leave out what changes a batch. The "
      f"fingerprints:{''.join(lines)}"
    )


def outcome(one: str | Path, other: str | Path) -> Outcome:
  """The run in `one` beside its repetition in `other`, which is finished."""
  one, other = files.expanded(one), files.expanded(other)
  a, b = compare.curve(one), compare.curve(other)
  finished = (one / "result.json").is_file()
  until = max(a, default=0)
  if finished:
    until = max(until, *b, 0)
  common = sorted(a.keys() & b.keys())
  parts_at, parts_in = None, ()
  for step in common:
    parts_in = _differing(a[step], b[step])
    if parts_in:
      parts_at = step
      break
  alone = sorted(step for step in a.keys() ^ b.keys() if step <= until)
  return Outcome(
    rows=len(common),
    parts_at=parts_at,
    parts_in=parts_in,
    alone=tuple(alone),
    until=until,
    states=_states(one, other),
    finished=finished,
  )


def _differing(x: Mapping, y: Mapping) -> tuple[str, ...]:
  """Names whose numbers are not the same to the bit, as text tells them."""
  names = sorted(x.keys() | y.keys())
  return tuple(
    k for k in names if k not in x or k not in y or repr(x[k]) != repr(y[k])
  )


def _manifests(workdir: Path) -> dict[int, dict]:
  """{step: manifest} of the whole checkpoints of a run."""
  saved = history.checkpoints_in(workdir, run.identity_in(workdir))
  found = {step: saved.manifest(step) for step in saved.steps()}
  return {step: content for step, content in found.items() if content}


def _states(one: Path, other: Path) -> dict[int, tuple[str, ...] | None]:
  """See `Outcome`; what is digested otherwise cannot be compared."""
  a, b = _manifests(one), _manifests(other)
  found: dict[int, tuple[str, ...] | None] = {}
  for step in sorted(a.keys() & b.keys()):
    versions = {x[step].get("digest_version", 1) for x in (a, b)}
    if len(versions) == 1:
      x, y = (
        {leaf["name"]: leaf["digest"] for leaf in content[step]["leaves"]}
        for content in (a, b)
      )
      names = sorted(x.keys() | y.keys())
      names = [name for name in names if x.get(name) != y.get(name)]
      found[step] = tuple(names) or None
  ends = [
    run.result_in(path) if (path / "result.json").is_file() else {}
    for path in (one, other)
  ]
  steps, digests = ([end.get(k) for end in ends] for k in ("step", "digest"))
  last, same = steps[0], steps[0] == steps[1]
  if same and None not in digests and last not in {*a, *b}:
    found[last] = None if digests[0] == digests[1] else ("the whole state",)
  return found


def as_text(found: Outcome) -> str:
  """The outcome as a person reads it: a line on rows, a line on states."""
  return "\n".join(["Compared", f"  rows: {_rows(found)}", f"  {_kept(found)}"])


def _rows(found: Outcome) -> str:
  lines = []
  if found.parts_at is not None:
    lines.append(
      f"they part at step {found.parts_at}, in {_some(found.parts_in)}"
    )
  if found.alone:
    lines.append(f"only one run has rows of steps {_some(found.alone)}")
  if not lines and not found.rows:
    return "none that could be compared"
  if not lines:
    lines.append(
      f"equal bit for bit at all {counted(found.rows, 'step')} with any, "
      f"to step {found.until} (but for seconds and speed/)"
    )
  if not found.finished:
    lines.append("the run that is repeated was not finished")
  return "; ".join(lines)


def _kept(found: Outcome) -> str:
  if not found.states:
    return "state: no step of which both have a digest"
  apart = [step for step, names in found.states.items() if names]
  if apart:
    names = _some(found.states[apart[0]])
    return f"state: differs at step {apart[0]}, in {names}"
  return f"state: equal digests at step {_some(tuple(found.states), 12)}"


def _some(words: tuple, most: int = 6) -> str:
  rest = f" and {len(words) - most} more" if len(words) > most else ""
  return ", ".join(map(str, words[:most])) + rest
