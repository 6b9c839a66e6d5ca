"""Commands as typed at a terminal, without importing JAX anew for each line.

A process that has imported what a command needs is forked for each line. There
the module runs as `python -m` runs it, with a folder, an environment, streams
and an exit status of its own.
"""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 200.0  # seconds


def run(
  module: str, *argv: str, cwd: Path = ROOT, environ: dict | None = None
) -> subprocess.CompletedProcess:
  """`python -m MODULE ARGV`; its output as text.

  `environ` is beside what the tests have. What JAX reads while it is imported,
  as JAX_PLATFORMS, is theirs; XLA_FLAGS are read later.
  """
  with tempfile.TemporaryDirectory() as folder:
    files = [Path(folder, name) for name in ("out", "err")]
    child = _forks(module).Process(
      target=_become, args=(module, argv, cwd, environ or {}, files, _paths())
    )
    child.start()
    child.join(LIMIT)
    if child.exitcode is None:
      child.kill()
      child.join()
      raise subprocess.TimeoutExpired([module, *argv], LIMIT)
    texts = [file.read_text(errors="replace") for file in files]
  return subprocess.CompletedProcess([module, *argv], child.exitcode, *texts)


@functools.cache
def _forks(module: str):
  """Processes that begin with the imports of `module` done."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([module])
  return context


@functools.cache
def _paths() -> list[str]:
  """Where a new Python looks for modules, but for its own folder."""
  code = "import sys; print(*sys.path[1:], sep='\\n')"
  line = [sys.executable, "-c", code]
  found = subprocess.run(line, capture_output=True, text=True, check=True)
  return found.stdout.splitlines()


def _become(module, argv, cwd, environ, files, paths) -> None:
  for number, file in enumerate(files, 1):
    to = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(to, number)
    os.close(to)
  os.chdir(cwd)
  os.environ.update(environ)
  sys.argv[:] = [module, *argv]
  sys.path[:] = [str(cwd), *paths]
  sys.modules.pop(module, None)  # it runs anew, as the main module
  runpy.run_module(module, run_name="__main__", alter_sys=True)
