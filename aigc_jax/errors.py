"""Refusals: errors a user can cause, each with the exit status of a command.

The message of a refusal names the value, what was expected, and the way out.
"""

import difflib
from collections.abc import Iterable


class Refusal(Exception):
  """Something the program will not do; `code` is its exit status."""

  code = 1


class BadData(Refusal):
  """A source, tokenizer or store that cannot be used."""

  code = 65


class WorkdirInUse(Refusal):
  """Another live process writes to this work directory."""

  code = 73


class StorageFailure(Refusal):
  """The work directory cannot be written, or no checkpoint in it is valid."""

  code = 74


class Stopped(Refusal):
  """Stopped by a signal or a STOP file after saving; run again to continue."""

  code = 75


class NonFinite(Refusal):
  """Too many non-finite losses in a row."""

  code = 76


class BadConfig(Refusal):
  """A configuration that cannot work, or does not match the run on disk."""

  code = 78


class BadKey(BadConfig):
  """A key of a config that is unknown, or whose value is of another type."""

  def __init__(self, message: str, key: str):
    super().__init__(message)
    self.key = key  # "model.dim"


class MissingKeys(BadKey):
  """A section of a config, `key`, that lacks some of its keys."""


class Hang(Refusal):
  """The watchdog saw no progress."""

  code = 79


class PeerLost(Refusal):
  """Another process of the run is gone, or cannot be reached."""

  code = 79


class Diverged(Refusal):
  """Copies of one value differ between devices: one of them computes wrong."""

  code = 79


class NotRepeated(Refusal):
  """A run was repeated to its end, and is not the same."""

  code = 80


def nearest(word: str, words: Iterable[str]) -> str:
  """ "; did you mean 'x'?" for the closest of `words`, or nothing."""
  close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
  return f"; did you mean {close[0]!r}?" if close else ""


def choose(kind: str, table: dict, what: str):
  """`table[kind]`, or a BadConfig that lists what there is."""
  if not isinstance(kind, str) or kind not in table:
    raise BadConfig(
      f"{what} {kind!r} is unknown{nearest(str(kind), table)} "
      f"(there are: {', '.join(sorted(table))})"
    )
  return table[kind]
