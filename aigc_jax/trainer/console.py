"""The progress of a run on a terminal: a live bar, or plain lines."""

import sys
import time
from collections.abc import Mapping

from rich import console, progress

from aigc_jax import terminal


def short(value: float) -> str:
  """1234567 as "1.23M"."""
  for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.3g}{letter}"
  return f"{value:.3g}"


def shout(text: str) -> None:
  """A line on stderr, even when logging is quiet or the pipe is gone."""
  try:
    print(f"aigc_jax: {text}", file=sys.stderr, flush=True)
  except OSError:
    pass


YARDSTICKS = ("/gzip_bits_per_byte", "/xz_bits_per_byte")


class Console:
  """A bar with step, loss, pace and time left, which counts no compilation.

  Where the output is no terminal, a line for the first row, for each
  evaluation, and then at most one in `every_seconds`.
  """

  def __init__(self, total_steps: int, step: int, every_seconds: float = 10.0):
    self._total = total_steps
    self._every = every_seconds
    self._next = 0.0
    self._start: tuple[int, float] | None = None  # after the first call
    self._told = 0.0  # seconds of compiling
    self._bar: progress.Progress | None = None
    if sys.stderr.isatty():
      self._bar = progress.Progress(
        progress.TextColumn("step"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.fields[text]}"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console.Console(file=terminal.plain(sys.stderr)),
        refresh_per_second=4,
      )
      self._task = self._bar.add_task(
        "steps", total=total_steps, completed=step, text="compiling"
      )
      self._bar.start()

  def row(self, row: Mapping) -> None:
    # What gzip and xz reach never changes: it stands among the results.
    evals = {
      name: x
      for name, x in row.items()
      if name.startswith("eval/") and not name.endswith(YARDSTICKS)
    }
    if evals:
      self.say(f"step {row['step']}: {_listed(evals)}")
    if "train/loss" not in row:
      return
    text = [f"loss {_shown(row['train/loss'])}"]
    for unit in ("tokens", "examples"):
      if speed := row.get(f"speed/{unit}_per_second"):
        text.append(f"{short(speed)} {unit}/s")
        break
    if mfu := row.get("speed/mfu"):
      text.append(f"mfu {mfu:.1%}")
    if self._bar:
      self._bar.update(self._task, completed=row["step"], text="  ".join(text))
    elif time.monotonic() >= self._next or row["step"] == self._total:
      self._next = time.monotonic() + self._every
      left = _left(self._start, row["step"], self._total)
      line = f"step {row['step']}/{self._total}  {'  '.join(text)}  {left}"
      self.say(line.rstrip())

  def move(self, step: int) -> None:
    # The first call is left out of the pace: its program was compiled for it.
    first = self._start is None
    self._start = self._start or (step, time.monotonic())
    if self._bar:
      started = {"text": ""} if first else {}
      self._bar.update(self._task, completed=step, **started)

  def compiling(self, seconds: float) -> None:
    """Told after some seconds, and then at each minute; the bar says it too."""
    due = 60 * (self._told // 60 + 1) if self._told else self._every
    if self._bar is None and seconds >= due:
      self._told = seconds
      self.say(f"compiling the step: {seconds:.0f} s so far")

  def say(self, text: str) -> None:
    try:
      if self._bar:
        shown = terminal.shown(text)
        self._bar.console.print(shown, markup=False, highlight=False)
      else:
        print(text, file=sys.stderr, flush=True)
    except OSError:
      pass  # the terminal is gone; the run is not

  def close(self) -> None:
    if self._bar:
      self._bar.stop()


def _listed(metrics: Mapping) -> str:
  return "  ".join(
    f"{name.removeprefix('eval/')} {_shown(x)}" for name, x in metrics.items()
  )


def _shown(value) -> str:
  return "not finite" if value is None else f"{value:.4g}"


def _left(start: tuple[int, float] | None, step: int, total: int) -> str:
  if start is None or step <= start[0]:
    return ""
  done, seconds = step - start[0], time.monotonic() - start[1]
  left = round((total - step) * seconds / done)
  return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
