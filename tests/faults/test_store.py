"""Token stores that rot, shrink or are edited: named, and never trained on."""

import json
import os
import shutil

import pytest

from aigc_jax.errors import BadData
from tests.faults.conftest import write_texts
from tests.faults.harness import SLOW, events, rows
from tests.faults.test_damage import flip


@pytest.fixture
def own(tmp_path, text, twin):
  """Texts and stores of one's own: those of the twin, to be damaged."""
  folder = tmp_path / "text"
  folder.mkdir()
  write_texts(folder)
  shutil.copytree(text / "stores", folder / "stores")
  return folder


def tokens_of(folder, name: str):
  """The tokens of a training store."""
  (found,) = (folder / "stores" / "stores").glob(
    f"{name}-train-*/tokens-00000.npy"
  )
  return found


@pytest.mark.slow
def test_stores_that_are_not_what_was_prepared(start, workdir, own, record):
  path = tokens_of(own, "plain")
  whole, status = path.read_bytes(), path.stat()
  flip(path, 8 * 1000 + 3)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  run = start(workdir, text=own).done(BadData.code)
  assert f"{path.name}: not the bytes that the manifest names" in run.err
  assert not rows(workdir)
  record(
    "bit rot in a token store", "one bit flipped, times and size as before",
    "status 65 before the first step, names the file", None,
  )  # fmt: skip
  path.write_bytes(whole)
  (manifest,) = (own / "stores" / "stores").glob(
    "plain-validation-*/manifest.json"
  )
  content = json.loads(manifest.read_text())
  content["bytes"] *= 2
  manifest.write_text(json.dumps(content))
  run = start(workdir, text=own).done(BadData.code)
  assert "its seal is another" in run.err
  record(
    "edited manifest of a token store", "twice the bytes, for half the score",
    "status 65, names the manifest", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_store_that_shrinks_while_it_is_trained_on(
  start, workdir, own, twin, record
):
  run = start(workdir, text=own, plan=SLOW)
  run.row(6)
  path = tokens_of(own, "plain")
  whole = path.read_bytes()
  os.truncate(path, 200)
  run.done(BadData.code)
  assert f"{path.name}: ends at byte 200" in run.err
  assert "became shorter while it was read" in run.err
  path.write_bytes(whole)
  (workdir / "FAULTS_ALLOWED").unlink(missing_ok=True)
  start(workdir, text=own).done()
  assert events(workdir, "restart")
  assert [row["step"] for row in rows(workdir)] == [
    row["step"] for row in rows(twin)
  ]
  record(
    "token store truncated while it is trained on",
    "a shard cut to 200 bytes",
    "status 65, names the file and where it ends; goes on when it is back",
    None,
  )  # fmt: skip
