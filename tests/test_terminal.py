"""Nothing that comes from elsewhere does more on a terminal than appear."""

import io
import logging as std_logging
import math
import os
import sys
from pathlib import Path

import pytest
from absl import logging
from rich.console import Console

from aigc_jax import evaluate, run, terminal
from aigc_jax import train as training
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.planning import summary
from aigc_jax.trainer import console
from configs import quickstart

WICKED = {
  "clears the screen": "\x1b[2J",
  "sets the title": "\x1b]0;x\x07",
  "writes the clipboard": "\x1b]52;c;eA==\x1b\\",
  "one of C1": "\x9b2J",
  "goes back": "abc\rx\b",
  "another direction": "a\u202eb\u2066c",
  "half a character": "\ud800",
  "delete": "\x7f",
}


class Screen(io.StringIO):
  """A terminal that keeps what it is told."""

  def isatty(self):
    return True


def screens_of(monkeypatch):
  """(stdout, stderr) as terminals, guarded; put back afterwards."""
  handler = logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, "stream", handler.stream)
  monkeypatch.setattr(sys, "stdout", Screen())
  monkeypatch.setattr(sys, "stderr", Screen())
  out, err = sys.stdout, sys.stderr
  terminal.guard()
  return out, err


def harmless(text: str) -> bool:
  """Whether a terminal would only show it."""
  text.encode()
  return not any(
    c < " " and c not in "\n\t" or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066"
    for c in text
  )


@pytest.mark.parametrize("name", WICKED)
def test_control_sequences_become_visible(name):
  assert harmless(terminal.shown(WICKED[name]))
  assert terminal.shown(WICKED[name]) != WICKED[name]


def test_text_of_any_language_stays_as_it_is():
  text = "a\tb\n\u00e9 \u4e2d \u05e9\u05dc \U0001f469\u200d\U0001f52c \u200e"
  assert terminal.shown(text) == text


@pytest.mark.parametrize("name", WICKED)
def test_every_stream_of_a_command_shows_what_it_is_given(name, monkeypatch):
  screens = screens_of(monkeypatch)
  text = WICKED[name]
  # pytest would keep the record and could not send half a character to the
  # process that reports.
  root = std_logging.getLogger()
  ours = [h for h in root.handlers if "pytest" not in type(h).__module__]
  monkeypatch.setattr(root, "handlers", ours)
  print(text, end="")
  print(text, file=sys.stderr)
  sys.stderr.writelines([text, "\n"])
  logging.error("a file named %s", text)
  console.shout(text)
  terminal.guard()  # once is enough
  for screen in screens:
    assert screen.getvalue() and harmless(screen.getvalue())


def test_a_pipe_gets_the_text_as_it_is(monkeypatch):
  pipe = io.StringIO()
  monkeypatch.setattr(sys, "stdout", pipe)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  handler = logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, "stream", handler.stream)
  terminal.guard()
  print("\x1b[2J", end="")
  assert pipe.getvalue() == "\x1b[2J"


@pytest.mark.parametrize("name", ["r[/x]", "[red]r", "[link=x]r", "\x1b[2Jr"])
def test_a_table_of_scores_takes_any_name(name):
  loaded = run.Loaded(None, None, None, {}, None, 7, name)
  scores = {name: {name: Estimate(1.0, 0.5, 3, signature=name)}}
  screen = Screen()
  evaluate.show(
    Console(file=screen, width=200, color_system=None), loaded, scores
  )
  text = screen.getvalue()
  assert text.count(terminal.shown(name)) == 5 and harmless(text)


@pytest.mark.parametrize(("error", "column"), [(0.5, True), (math.nan, False)])
def test_a_table_of_scores_has_no_column_that_is_empty(error, column):
  loaded = run.Loaded(None, None, None, {}, None, 7, "x")
  table = evaluate.table_of(
    loaded, {"heldout": {"loss": Estimate(1, error, 3)}}
  )
  assert ("± error" in [c.header for c in table.columns]) == column


def test_the_live_bar_says_what_it_is_told(monkeypatch):
  screens = screens_of(monkeypatch)
  bar = console.Console(10, 0)
  bar.say("[/x] \x1b]0;title\x07")
  bar.close()
  text = screens[1].getvalue()
  assert "[/x] \u241b]0;title\u2407" in text and "\x1b]0" not in text


def test_the_live_bar_says_compiling_until_a_step_is_done(monkeypatch):
  screens_of(monkeypatch)
  bar = console.Console(10, 0)
  texts = [task.fields["text"] for task in bar._bar.tasks]
  bar.move(1)
  texts += [task.fields["text"] for task in bar._bar.tasks]
  bar.close()
  assert texts == ["compiling", ""]


def test_a_closed_stream_and_a_poor_encoding_end_no_command(monkeypatch):
  handler = logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, "stream", handler.stream)
  poor = io.TextIOWrapper(io.BytesIO(), "ascii")
  monkeypatch.setattr(sys, "stdout", poor)
  monkeypatch.setattr(sys, "stderr", None)
  terminal.guard()
  print("\u00e9\udcff", flush=True)
  print("nobody reads this", file=sys.stderr)
  assert poor.buffer.getvalue() == b"\\xe9\\udcff\n"


def gone(monkeypatch, stream):
  """A guarded stdout that cannot be written, and the stderr beside it."""
  handler = logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, "stream", handler.stream)
  monkeypatch.setattr(sys, "stdout", stream)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  err = sys.stderr
  terminal.guard()
  return err


def test_a_reader_that_has_left_ends_no_command_and_is_no_failure(monkeypatch):
  read, write = os.pipe()
  os.close(read)
  with open(write, "w") as pipe:
    err = gone(monkeypatch, pipe)
    for _ in range(2):
      print("nobody reads this", flush=True)
    assert terminal.settled(0) == 0 and not err.getvalue()


def test_a_full_disk_under_stdout_ends_no_command_and_is_its_status(
  monkeypatch,
):
  with open("/dev/full", "w") as full:
    err = gone(monkeypatch, full)
    print("no room for this", flush=True)
    assert terminal.settled(1) == 1
    assert terminal.settled(0) == 74 and "No space left" in err.getvalue()
    terminal.forget_loss()
    assert terminal.settled(0) == 0


def test_one_is_no_plural():
  assert [terminal.counted(n, "step") for n in (0, 1, 2000)] == [
    "0 steps", "1 step", "2,000 steps",
  ]  # fmt: skip
  assert terminal.counted(2, "branch") == "2 branches"


def test_little_time_is_not_told_as_none():
  assert [terminal.duration(s) for s in (1.26, 119, 7230)] == [
    "1.3 seconds", "119.0 seconds", "120.5 minutes",
  ]  # fmt: skip


def test_small_memory_is_not_told_as_zero():
  sizes = [
    summary.size(n) for n in (4096, 83_456, 13 * 2**20, 2**28, 3 * 2**30)
  ]
  assert sizes == [
    "4.000 KiB", "81.500 KiB", "13.000 MiB", "0.250 GiB", "3.000 GiB",
  ]  # fmt: skip


def test_a_small_score_is_not_printed_as_nothing():
  numbers = [3.82631, 0.0, 0.01234, 0.000312, -0.0000456, math.nan]
  assert [terminal.score(x) for x in numbers] == [
    "3.8263", "0.0000", "0.0123", "0.000312", "-4.56e-05", "nan"
  ]  # fmt: skip


def test_a_small_result_is_told_at_the_end_of_a_run():
  config = run.read(quickstart.get_config())
  result = {"step": 3, "eval/drawn/kid": 0.000312}
  told = training.footer(Path("x"), result, config)
  assert "eval/drawn/kid                   0.000312" in told


def test_results_stand_in_one_column_however_long_their_names_are():
  config = run.read(quickstart.get_config())
  result = {"step": 3, "eval/a/b": 1.0, f"eval/{'recall' * 9}/at_1": 2.0}
  told = training.footer(Path("x"), result, config).split("\n")
  first, other = (line for line in told if line.startswith("  eval/"))
  assert first.index("1.0000") == other.index("2.0000")
