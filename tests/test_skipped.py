"""What was skipped can be named and run alone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.parametrize("x", ["a b", "c"])
def test_some(x):
  if x != "c":
    pytest.skip("lacks something")

@pytest.mark.xfail
def test_expected():
  assert False
"""
LACKS = """
import pytest
pytest.importorskip("a_package_that_nobody_has")

def test_of_it():
  pass
"""


def names(folder: Path, *ids: str) -> list[str]:
  """Of what a run of the tests in a folder skips."""
  subprocess.run(
    [sys.executable, "-m", "pytest", "-n", "0", "-p", "tests.conftest",
     "-p", "no:cacheprovider", f"--rootdir={folder}", *ids],
    cwd=folder, capture_output=True,
    env=os.environ | {"AIGC_JAX_SKIPPED": "skipped", "PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  return (folder / "skipped").read_text().splitlines()


def test_tests_and_files_that_are_skipped_are_named_as_one_runs_them(tmp_path):
  (tmp_path / "test_some.py").write_text(TESTS)
  (tmp_path / "test_lacking.py").write_text(LACKS)
  found = names(tmp_path)
  assert found == ["test_lacking.py", "test_some.py::test_some[a b]"]
  assert names(tmp_path, *found) == found
