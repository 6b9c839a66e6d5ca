"""Which run a work directory holds, and which checkpoints are its own.

A run draws its identity when it begins, and a leg each time that it begins or
goes on. run.json holds both,

  {"run": {"id": "3f0c...", "since": null, "legs": [["a1", 12], ["b7", null]],
           "place": {"path": "/runs/a", "inode": 42}}, ...}

and so does the manifest of each of its checkpoints, {"run": "3f0c...", "leg":
"b7", ...}: one that was copied from another run is not used by accident. Each
leg but the last has the step from which the next one went on. So of a work
directory and its copy, which go on apart, each owns what was saved before they
parted, and nothing that the other saves later; nobody has to notice that there
is a copy. A run that began before there were identities gets one when it goes
on; `since` is the step from which its checkpoints have it.
"""

import dataclasses
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import files, records
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.records import COUNT
from aigc_jax.trainer.together import from_first

NAME = "[0-9A-Za-z]{1,64}"
PLACE = {"path": str, "inode": int}
FORM = {"id": NAME, "since?": (COUNT, None), "legs?": list, "place?": PLACE}


@dataclasses.dataclass(frozen=True)
class Identity:
  """id: 16 hexadecimal digits; "" of a run that has none yet.

  legs: (name, last step that counts, None for all) of each time that it went
  on; none in a run from before there were legs. place: (path, inode) of the
  work directory when it last went on.
  """

  id: str
  since: int | None = None
  legs: tuple[tuple[str, int | None], ...] = ()
  place: tuple[str, int] | None = None

  @property
  def leg(self) -> str:
    """The name of the one under way; "" where there is none."""
    return self.legs[-1][0] if self.legs else ""

  def owns(self, content: Mapping) -> bool:
    """Whether a manifest is of this run, and of this copy of it."""
    theirs = content.get("run", "")
    if theirs or not self.id:
      return theirs == self.id and self._went(content)
    return self.since is not None and content["step"] <= self.since

  def _went(self, content: Mapping) -> bool:
    """Whether the leg that saved a manifest is one of ours, up to its step."""
    leg = content.get("leg")
    return leg is None or any(
      name == leg and (last is None or content["step"] <= last)
      for name, last in self.legs
    )

  def check(self, content: Mapping, where: str) -> None:
    """Raises BadConfig unless the manifest of `where` is of this run."""
    if self.owns(content):
      return
    theirs = content.get("run") or "without an identity"
    ours = f"is {self.id}" if self.id else "has no identity in its run.json"
    found = (
      f"{where} is a checkpoint of another run ({theirs}); the run of this "
      f"work directory {ours}."
    )
    if self.id and self.id == theirs:
      found = (
        f"{where} was saved by another copy of this run ({theirs}), after the "
        "two had parted, or before this one was set back."
      )
    raise BadConfig(
      f"{found} Move that folder away, or put back the run.json "
      "that belongs to it. To begin a run with its parameters: "
      "--config.init_from=DIR. To go on from it all the same: "
      "--allow_change=run"
    )

  def going_on(self, step: int, workdir: Path) -> "Identity":
    """This run with a new leg from `step` on; every process must call this.

    workdir: the folder that holds it now.
    """
    legs = tuple(
      (name, step if last is None else min(last, step))
      for name, last in self.legs
    )
    leg = f"{from_first(secrets.randbits(31)):08x}"
    return dataclasses.replace(
      self, legs=(*legs, (leg, None)), place=place_of(workdir)
    )

  def as_json(self) -> dict:
    place = self.place and dict(zip(PLACE, self.place, strict=True))
    entry = dataclasses.asdict(self) | {"legs": list(map(list, self.legs))}
    return entry | {"place": place} if place else _without(entry, "place")


def _without(entry: dict, name: str) -> dict:
  return {key: x for key, x in entry.items() if key != name}


def place_of(workdir: Path) -> tuple[str, int]:
  """(path, inode) of a work directory."""
  return os.path.realpath(workdir), os.stat(workdir).st_ino


def of(about: Mapping) -> Identity:
  """The identity that a run.json holds; BadConfig where it makes no sense."""
  entry = about.get("run")
  if entry is None:
    return Identity("")
  legs = entry.get("legs", []) if isinstance(entry, dict) else []
  if records.fits(entry, FORM) and all(map(_is_leg, legs)):
    place = entry.get("place")
    return Identity(
      entry["id"],
      entry.get("since"),
      tuple((name, last) for name, last in legs),
      (place["path"], place["inode"]) if place else None,
    )
  raise BadConfig(
    f'run.json: "run" is {str(entry)[:80]}, expected an object with "id": put '
    "back the run.json of this run"
  )


def _is_leg(entry) -> bool:
  """Whether an entry of a list of legs is one."""
  return (
    isinstance(entry, list)
    and len(entry) == 2
    and records.fits(entry[0], NAME)
    and records.fits(entry[1], (COUNT, None))
  )


def new(since: int | None = None) -> Identity:
  """A new one, equal on all processes; every one must call this."""
  words = [from_first(secrets.randbits(31)) for _ in range(2)]
  return Identity("".join(f"{word:08x}" for word in words), since)


def original_of(workdir: Path, run: Identity) -> str:
  """The folder that `workdir` is a copy of, where that is still there; or "".

  A work directory that was only moved is no copy: nothing is left behind.
  """
  here = place_of(workdir)
  if run.place is None or run.place[0] == here[0]:
    return ""
  there = Path(run.place[0])
  try:
    if place_of(there)[1] == here[1]:  # the same folder, by another name
      return ""
    theirs = of(files.read_json(there / "run.json"))
  except (OSError, ValueError, BadData, BadConfig):
    return ""
  return str(there) if theirs.id == run.id else ""
