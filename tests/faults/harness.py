"""Real processes of the training command: start, wait for a line, hurt, judge.

Nothing here sleeps to synchronise: whoever waits polls for a line of
metrics.jsonl, events.jsonl or the console, and gives up after a limit.
"""

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aigc_jax.trainer import faults, manifest
from tests import commands

ROOT = Path(__file__).parents[2]
CONFIG = "tests/faults/tiny.py"
# Seconds that anything may take before the test gives up: what ends a test is a
# run that hangs, not a machine that has others to work for.
LIMIT = 600.0

# Programs are tiny: most of a first start is compiling them.
XLA = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  XLA += " --xla_cpu_use_fusion_emitters=false"


def until(condition: Callable, what: str, limit: float = LIMIT):
  """The first true value of `condition`, looked at again and again."""
  end = time.monotonic() + limit
  while time.monotonic() < end:
    if found := condition():
      return found
    time.sleep(0.01)
  raise AssertionError(f"not within {limit:.0f} s: {what}")


def patience(seconds: float) -> float:
  """A limit for an idle machine, longer where others work too."""
  return seconds * max(1.0, 2 * os.getloadavg()[0] / os.cpu_count())


def lines(path: Path) -> list[dict]:
  """The whole rows of a file of JSON lines, as far as it is written."""
  if not path.is_file():
    return []
  text = path.read_bytes()
  return [json.loads(x) for x in text[: text.rfind(b"\n") + 1].splitlines()]


def rows(workdir: Path) -> list[dict]:
  return lines(workdir / "metrics.jsonl")


def events(workdir: Path, kind: str = "") -> list[dict]:
  found = lines(workdir / "events.jsonl")
  return [row for row in found if kind in ("", row["event"])]


def timeless(workdir: Path) -> list[dict]:
  """The metrics without what a clock decides."""
  return [
    {
      name: x
      for name, x in row.items()
      if name != "seconds" and not name.startswith("speed/")
    }
    for row in rows(workdir)
  ]


def hashes(workdir: Path) -> dict[int, int]:
  """{step: hash of its batch}."""
  return {
    row["step"]: row["data/batch_hash"]
    for row in rows(workdir)
    if "data/batch_hash" in row
  }


def losses(workdir: Path) -> dict[int, float]:
  return {
    row["step"]: row["train/loss"]
    for row in rows(workdir)
    if "train/loss" in row
  }


def result(workdir: Path) -> dict:
  return json.loads((workdir / "result.json").read_text())


def saved(workdir: Path) -> list[int]:
  """The committed steps."""
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdecimal())


def last_step(workdir: Path) -> int:
  return max((row["step"] for row in rows(workdir)), default=0)


def assert_twins(workdir: Path, twin: Path) -> None:
  """Same rows, same batches, same final state, bit for bit."""
  for ours, theirs in zip(timeless(workdir), timeless(twin), strict=True):
    assert ours == theirs, f"step {theirs['step']}"
  assert result(workdir)["digest"] == result(twin)["digest"]


def forge(step: Path, change) -> None:
  """Changes a manifest as somebody would who knows its hash."""
  path = step / manifest.NAME
  content = json.loads(path.read_text())
  change(content)
  content["sha256"] = manifest._hash(content)
  path.write_text(json.dumps(content))


class Run:
  """One process of the command, its output in files beside the work directory.

  `plan` are fault hooks; `fresh` starts Python as a user does, and not by
  forking a process that has imported what the command needs.
  """

  def __init__(
    self,
    workdir: Path,
    *flags: str,
    text: Path,
    compiled: Path,
    config: str = CONFIG,
    devices: int = 1,
    plan: dict | None = None,
    environ: dict | None = None,
    fresh: bool = False,
    log: Path | None = None,
  ):
    self.workdir = workdir
    if plan:
      workdir.mkdir(parents=True, exist_ok=True)
      (workdir / faults.MARK).touch()
    variables = {
      name: x for name, x in os.environ.items() if not name.startswith("JAX_")
    }
    variables |= {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": f"{XLA} --xla_force_host_platform_device_count={devices}",
      faults.VARIABLE: json.dumps(plan) if plan else "",
    }
    log = log or workdir.with_name(f"{workdir.name}.log")
    log.mkdir(parents=True, exist_ok=True)
    number = len(list(log.iterdir())) // 2
    self._out = log / f"{number:02}.out"
    self._err = log / f"{number:02}.err"
    variables |= environ or {}
    line = [
      "aigc_jax.train", f"--config={config}:{text}", f"--workdir={workdir}",
      *flags,
    ]  # fmt: skip
    self._before = self._starts()
    self.began = self.ended = time.monotonic()
    begin = self._started if fresh else self._forked
    self.process = begin(line, variables)

  def _forked(self, line: list[str], environ: dict) -> commands.Process:
    for path in (self._out, self._err):  # so that the next one finds them
      path.touch()
    return commands.start(
      *line, cwd=ROOT, environ=environ, out=self._out, err=self._err
    )

  def _started(self, line: list[str], environ: dict) -> subprocess.Popen:
    with open(self._out, "wb") as out, open(self._err, "wb") as err:
      return subprocess.Popen(
        [sys.executable, "-m", *line], cwd=ROOT, env=environ, stdout=out,
        stderr=err, stdin=subprocess.DEVNULL, start_new_session=True,
      )  # fmt: skip

  @property
  def seconds(self) -> float:
    """Since the start."""
    return time.monotonic() - self.began

  @property
  def out(self) -> str:
    return self._out.read_text(errors="replace")

  @property
  def err(self) -> str:
    return self._err.read_text(errors="replace")

  def send(self, number: int) -> None:
    self.process.send_signal(number)

  def wait(self, limit: float = LIMIT) -> int:
    """The exit status; a process that outlives the limit is killed."""
    try:
      code = self.process.wait(limit)
      self.ended = time.monotonic()
      return code
    except subprocess.TimeoutExpired:
      self.end()
      raise AssertionError(f"no end within {limit} s\n{self.err}") from None

  def done(self, code: int = 0, limit: float = LIMIT) -> "Run":
    """Waits; the exit status must be `code`."""
    found = self.wait(limit)
    assert found == code, f"status {found}, not {code}\n{self.out}\n{self.err}"
    return self

  def until(self, condition: Callable, what: str, limit: float = LIMIT):
    """Waits for a condition, as long as the process lives."""

    def look():
      found = condition()
      if not found and self.process.poll() is not None:
        found = condition()
        assert found, (
          f"ended with {self.process.returncode} before {what}\n{self.err}"
        )
      return found

    return until(look, what, limit)

  def _starts(self) -> int:
    return sum(x["event"] in ("start", "restart") for x in events(self.workdir))

  def row(self, step: int) -> None:
    """Waits until this process has written the row of a step or a later one."""
    self.until(lambda: self._starts() > self._before, "its start")
    self.until(lambda: last_step(self.workdir) >= step, f"row {step}")

  def stopped(self) -> None:
    """Waits until the process has stopped itself, as a plan may say."""
    self.until(lambda: _status(self.process.pid) in "Tt", "it stops itself")

  def stopped_or_ended(self) -> int | None:
    """Waits for either; the exit status if it ended."""
    until(
      lambda: (
        self.process.poll() is not None or _status(self.process.pid) in "Tt"
      ),
      "it stops or ends",
    )
    return self.process.poll()

  def go_on(self, *signals: int) -> float:
    """Wakes a stopped process, with signals it finds; the time of it."""
    for number in signals:
      self.send(number)
    self.send(signal.SIGCONT)
    return time.monotonic()

  def event(self, kind: str, count: int = 1) -> dict:
    """Waits for the `count`-th event of a kind."""
    self.until(lambda: len(events(self.workdir, kind)) >= count, kind)
    return events(self.workdir, kind)[count - 1]

  def says(self, word: str) -> None:
    """Waits for a word on the console."""
    self.until(lambda: word in self.err or word in self.out, repr(word))

  def end(self) -> None:
    """Kills the process and all it started."""
    try:
      os.killpg(self.process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self.process.wait(LIMIT)


def _status(pid: int) -> str:
  """One letter: R running, S sleeping, T stopped, ..."""
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
  except (FileNotFoundError, ProcessLookupError):
    return "X"


def stop(site: str, **place) -> dict:
  """The plan of a process that stops itself at a site, to be hurt there."""
  return {"stop_at": [{"site": site} | place]}


def slow(seconds: float) -> dict:
  """The plan of a process that takes that long for every step."""
  return {"sleep_at": [{"site": "step", "n": 0, "seconds": seconds}]}


SLOW = slow(0.05)


def together(start, workdir: Path, count: int, *flags, plans=(), **changes):
  """`count` processes that train as one."""
  where = f"--coordinator=127.0.0.1:{free_port()}"
  return [
    start(
      workdir, *flags, where, f"--processes={count}", f"--process={i}",
      "--heartbeat=10", **changes,
    )
    for i in range(count)
  ]  # fmt: skip


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]
