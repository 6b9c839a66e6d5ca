"""Eight virtual devices, tiny models with all-different sizes."""

import gc
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import tempfile

import pytest

# Programs here are tiny and run once: the time is in compiling them.
FLAGS = {
  "--xla_force_host_platform_device_count": "8",
  "--xla_backend_optimization_level": "0",
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Halves the time to compile; newer versions abort on a flag they dropped.
  FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
  flags = os.environ.get("XLA_FLAGS", "")
  if flag not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()

# What one test has compiled, no other test or process compiles again. The
# folder is of this run of the tests alone: its processes inherit the variable.
CACHE = "JAX_COMPILATION_CACHE_DIR"
own_cache = ""
if not os.environ.get(CACHE):
  own_cache = os.environ[CACHE] = tempfile.mkdtemp(prefix="compiled-")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure():
  if own_cache:
    shutil.rmtree(own_cache, ignore_errors=True)


def pytest_configure(config):
  """What AIGC_JAX_REQUIRE names must be there: its tests may not be skipped."""
  required = os.environ.get("AIGC_JAX_REQUIRE", "").split()
  missing = [name for name in required if not importlib.util.find_spec(name)]
  if missing:
    raise pytest.UsageError(f"required and not installed: {', '.join(missing)}")


def pytest_collection_finish():
  """What was imported and collected stays: nothing looks for garbage there."""
  gc.collect()
  gc.freeze()
  # What traces leave behind is looked through more rarely: it was an eighth of
  # the processor's time.
  gc.set_threshold(50_000, 20, 100)


# A file's name in this variable: each test, or file of tests, that was skipped
# is a line of it, for whoever installs what they lacked and runs them alone.
SKIPPED = "AIGC_JAX_SKIPPED"
skipped: dict[str, None] = {}  # node ids, each once, in order


def pytest_runtest_logreport(report):
  if report.skipped and not hasattr(report, "wasxfail"):
    skipped[report.nodeid] = None


def pytest_collectreport(report):
  if report.skipped:
    skipped[report.nodeid] = None


def pytest_sessionfinish(session):
  path = os.environ.get(SKIPPED)
  if path and not hasattr(session.config, "workerinput"):
    with open(path, "w") as file:
      file.writelines(f"{name}\n" for name in skipped)


left_out = {}  # {process: slow tests that its collection left out}


def pytest_deselected(items):
  """Counts what the default `-m "not slow"` leaves out."""
  if items and all(item.get_closest_marker("slow") for item in items):
    config = items[0].config
    left_out["here"] = left_out.get("here", 0) + len(items)
    if hasattr(config, "workeroutput"):  # a process of pytest-xdist
      config.workeroutput["left_out"] = left_out["here"]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """Every process collects the same tests: one's number is that of all."""
  output = getattr(node, "workeroutput", None) or {}
  left_out["there"] = max(left_out.get("there", 0), output.get("left_out", 0))


def pytest_terminal_summary(terminalreporter):
  if number := max(left_out.values(), default=0):
    words = terminalreporter.config.invocation_params.args
    again = shlex.join(["python", "-m", "pytest", *words, "-m", "slow"])
    tests = "slow test" if number == 1 else "slow tests"
    terminalreporter.write_line(
      f"{number} {tests} left out; run them with: {again}"
    )
