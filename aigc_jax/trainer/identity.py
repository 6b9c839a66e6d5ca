"""Which run a work directory holds, and which checkpoints are its own.

A run draws its identity when it begins. run.json holds it,

  {"run": {"id": "3f0c...", "since": null}, ...}

and so does the manifest of each of its checkpoints, {"run": "3f0c...", ...}:
one that was copied from another run is not used by accident. A run that began
before there were identities gets one when it goes on; `since` is the step from
which its checkpoints have it.
"""

import dataclasses
import secrets
from collections.abc import Mapping

from aigc_jax.errors import BadConfig
from aigc_jax.trainer.together import from_first


@dataclasses.dataclass(frozen=True)
class Identity:
  """id: 16 hexadecimal digits; "" of a run that has none yet."""

  id: str
  since: int | None = None

  def owns(self, content: Mapping) -> bool:
    """Whether a manifest is of this run."""
    theirs = content.get("run", "")
    if theirs or not self.id:
      return theirs == self.id
    return self.since is not None and content["step"] <= self.since

  def check(self, content: Mapping, where: str) -> None:
    """Raises BadConfig unless the manifest of `where` is of this run."""
    if self.owns(content):
      return
    theirs = content.get("run") or "without an identity"
    ours = f"is {self.id}" if self.id else "has no identity in its run.json"
    raise BadConfig(
      f"{where} is a checkpoint of another run ({theirs}); the run of this "
      f"work directory {ours}. Move that folder away, or put back the run.json "
      "that belongs to it. To begin a run with its parameters: "
      "--config.init_from=DIR. To go on from it all the same: "
      "--allow_change=run"
    )

  def as_json(self) -> dict:
    return dataclasses.asdict(self)


def of(about: Mapping) -> Identity:
  """The identity that a run.json holds; BadConfig where it makes no sense."""
  entry = about.get("run")
  if entry is None:
    return Identity("")
  if isinstance(entry, Mapping):
    name, since = entry.get("id"), entry.get("since")
    named = isinstance(name, str) and 0 < len(name) <= 64 and name.isalnum()
    if named and (since is None or type(since) is int):
      return Identity(name, since)
  raise BadConfig(
    f'run.json: "run" is {str(entry)[:80]}, expected an object with "id": put '
    "back the run.json of this run"
  )


def new(since: int | None = None) -> Identity:
  """A new one, equal on all processes; every one must call this."""
  words = [from_first(secrets.randbits(31)) for _ in range(2)]
  return Identity("".join(f"{word:08x}" for word in words), since)
