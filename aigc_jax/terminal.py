"""What is shown on a terminal does nothing there but appear.

Documents, prompts, pieces of tokenizers, names of files and messages about all
of them may hold control sequences: they would move the cursor, set the title,
paste into the clipboard, or show text in another order than it is in. Every
command writes through `Shown`; files and pipes get the text as it is.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from absl import logging

from aigc_jax.errors import StorageFailure

KEPT = "\n\t"
# Visible signs of the control characters, the rest as Python writes them.
_SIGNS = {i: chr(0x2400 + i) for i in range(32)} | {0x7F: "\u2421"}
_C1 = {i: f"\\x{i:02x}" for i in range(0x80, 0xA0)}
# Embeddings, overrides and isolates of direction, and their ends.
_ORDER = {
  i: f"\\u{i:04x}" for i in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_HALVES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # cannot be encoded
_TABLE = {
  code: sign
  for code, sign in (_SIGNS | _C1 | _ORDER | _HALVES).items()
  if chr(code) not in KEPT
}


def shown(text: str) -> str:
  """The text with control characters made visible; lines and tabs stay."""
  return text.translate(_TABLE)


def counted(n: int, noun: str) -> str:
  """ "1 step", "2,000 steps", "2 branches"."""
  hissing = noun.endswith(("ch", "sh", "s", "x"))
  return f"{n:,} {noun}{'' if n == 1 else 'es' if hissing else 's'}"


def duration(seconds: float) -> str:
  """ "12.3 seconds", and from two minutes on "2.5 minutes"."""
  if seconds < 120:
    return f"{seconds:.1f} seconds"
  return f"{seconds / 60:,.1f} minutes"


class Lasting:
  """A stream that may be lost, which ends no work: nothing raises OSError.

  Its reader may have left ("| head -1"), its disk be full, its terminal be
  closed. What is said from then on goes to /dev/null; `lost` has the error.
  """

  def __init__(self, stream: TextIO):
    self.stream = stream
    self.lost: OSError | None = None

  def write(self, text: str) -> int:
    self._attempt(self.stream.write, text)
    return len(text)

  def writelines(self, lines) -> None:
    for line in lines:
      self.write(line)

  def flush(self) -> None:
    self._attempt(self.stream.flush)

  def _attempt(self, do: Callable, *words: str) -> None:
    try:
      do(*words)
    except OSError as error:
      self.lost = self.lost or error
      # What is buffered would fail again, and at the very end for good.
      with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), self.stream.fileno())

  def __getattr__(self, name):
    return getattr(self.stream, name)


class Shown:
  """A stream to which everything is written as `shown`."""

  def __init__(self, stream: TextIO):
    self.plain = stream

  def write(self, text: str) -> int:
    self.plain.write(shown(text))
    return len(text)

  def writelines(self, lines) -> None:
    for line in lines:
      self.write(line)

  def __getattr__(self, name):
    return getattr(self.plain, name)


def guard() -> None:
  """From here on stderr, and stdout on a terminal, show what they are given.

  A closed one (">&-") becomes /dev/null, one that closes later is `Lasting`,
  and one whose encoding lacks a character shows its number: none of it ends a
  command that has worked for hours, and has yet to write what it found.
  """
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, "w"))
    elif getattr(stream, "errors", None) == "strict":
      stream.reconfigure(errors="backslashreplace")
    if not isinstance(getattr(sys, name), Lasting | Shown):
      setattr(sys, name, Lasting(getattr(sys, name)))
  if not isinstance(sys.stderr, Shown):
    sys.stderr = Shown(sys.stderr)
    logging.get_absl_handler().python_handler.stream = sys.stderr
  if sys.stdout.isatty() and not isinstance(sys.stdout, Shown):
    sys.stdout = Shown(sys.stdout)


def settled(status: int) -> int:
  """The exit status of a command that would end with this one.

  Where its output was lost it is told, and a success is none. A reader who has
  left had read enough.
  """
  sys.stdout.flush()
  error = plain(sys.stdout).lost
  if error is None or isinstance(error, BrokenPipeError) or status:
    return status
  print(
    f"aigc_jax: what this command says cannot be written: {error.strerror}",
    file=sys.stderr,
  )
  return StorageFailure.code


def forget_loss() -> None:
  """Of what is lost so far no status tells: it is no result, only talk."""
  plain(sys.stdout).lost = None


def plain(stream: TextIO) -> TextIO:
  """The stream itself, for a bar or a table that moves the cursor on purpose.

  What comes from elsewhere goes through `shown` before it is written there,
  and to rich as Text or with markup=False.
  """
  return stream.plain if isinstance(stream, Shown) else stream


def score(value: float) -> str:
  """Four digits after the point, and of what they would hide three that count.

  A kernel distance of 0.0003 is nothing rare, and 0.0000 would say none.
  """
  return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.4f}"
