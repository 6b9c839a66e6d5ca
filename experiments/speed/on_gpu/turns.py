"""Processes that compile side by side and take turns on a device."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading


class Worker:
  """A process that answers each line with a line, both of JSON."""

  def __init__(self, name: str, module: str, *arguments: str, **environment):
    self.name = name
    self._errors = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, *arguments],
      env=os.environ | environment,
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
    )
    self._lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    for line in self._process.stdout:
      if line.startswith("{"):
        self._lines.put(line)
    self._lines.put(None)

  def hear(self, seconds: float) -> dict:
    """The next answer. Raises TimeoutError, or RuntimeError if it ended."""
    try:
      line = self._lines.get(timeout=max(0.1, seconds))
    except queue.Empty:
      raise TimeoutError(f"{self.name}: no answer in {seconds:.0f} s") from None
    if line is None:
      self._errors.seek(0)
      last = self._errors.read().strip()[-3000:]
      raise RuntimeError(f"{self.name} ended: {last}")
    return json.loads(line)

  def ask(self, seconds: float, **what) -> dict:
    """Says `what` and hears the answer."""
    try:
      self._process.stdin.write(json.dumps(what) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # `hear` says why
    return self.hear(seconds)

  def end(self) -> None:
    """Its memory is free afterwards."""
    try:
      self._process.stdin.close()
      self._process.wait(5)
    except (subprocess.TimeoutExpired, OSError):
      self._process.kill()
      self._process.wait()
