"""The prepare command: stores ahead of time, and clear refusals."""

import re
import types

import pytest

from aigc_jax import data, prepare
from aigc_jax.errors import BadConfig
from tests import commands


def command(*flags):
  return commands.run("aigc_jax.prepare", *flags)


def test_the_command_makes_what_training_finds(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text("some lines of text\n" * 400)
  flags = (f"--path={path}", f"--root={tmp_path}/root", "--validation=0.1")
  done = command(*flags, "--workers=2", "--verify")
  assert done.returncode == 0, done.stderr
  for word in (
    "x (train)",
    "x (validation)",
    "bytes per token",
    "gzip",
    "every sha256 is right",
    " tokens held out: what so few say",
  ):
    assert word in done.stdout
  assert "MB/s" in done.stderr
  source = prepare.source_of(path=str(path), corpus="", tfds="", field="text")
  manifests = data.prepared(
    sources=[source],
    tokenizer="bytes",
    tokenizer_vocab=4096,
    validation=0.1,
    root=f"{tmp_path}/root",
  )
  assert manifests and manifests[0]["name"] == "x"


CONFIGS = {
  "text": ("configs/text_file.py", "path", "x.txt", "a line of text\n" * 400),
  "spans": ("configs/t5.py", "path", "x.txt", "a line of text\n" * 400),
  "pairs": (
    "configs/transformer.py", "sources[0].path", "x.jsonl",
    "".join(f'{{"en": "a house {i}", "de": "ein Haus {i}"}}\n'
            for i in range(4000)),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_data_is_prepared_by_its_config(name, tmp_path):
  config, key, file, text = CONFIGS[name]
  (tmp_path / file).write_text(text)
  done = command(
    f"--config={config}",
    f"--config.data.{key}={tmp_path / file}",
    f"--config.data.root={tmp_path}/root",
    "--config.data.tokenizer=bytes",
  )
  assert done.returncode == 0, done.stderr
  assert re.search(r"[1-9][\d,]* (tokens|examples)", done.stdout)


@pytest.mark.slow
def test_what_training_is_measured_on_is_prepared_with_it(tmp_path):
  pytest.importorskip("sklearn")
  done = command(
    "--config=configs/clip.py:digits", f"--config.data.root={tmp_path}/root"
  )
  assert done.returncode == 0, done.stderr
  stores = {
    f"{path.parent.name}/{path.name.rpartition('-')[0]}"
    for path in (tmp_path / "root").glob("*/*") if path.is_dir()
  }  # fmt: skip
  assert stores == {
    "captions/digits-train", "captions/digits-validation",
    "images/digits-validation",
  }  # fmt: skip
  assert "evaluate.zero_shot: 360 examples held out" in done.stdout


def test_a_refusal_is_one_line_and_an_exit_status(tmp_path):
  done = command("--path=/nowhere/x.txt", f"--root={tmp_path}")
  assert done.returncode == 65
  assert "no such file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("own", "key"),
  [
    (["--path={}"], "--validation_path"),
    (
      ["--config=configs/text_file.py", "--config.data.path={}"],
      "--config.data.validation_path",
    ),
  ],
)
def test_held_out_text_that_is_not_there_is_told_before_the_rest_is_made(
  tmp_path, own, key
):
  path = tmp_path / "x.txt"
  path.write_text("some lines of text\n" * 400)
  root = "--config.data.root" if len(own) > 1 else "--root"
  done = command(
    *(word.format(path) for word in own), f"{key}=/nowhere.txt",
    f"{root}={tmp_path}/root",
  )  # fmt: skip
  assert done.returncode == 65
  assert "validation_path='/nowhere.txt': no such file" in done.stderr
  assert not (tmp_path / "root").exists()


def test_one_source_must_be_named():
  for given in (dict(), dict(path="x", corpus="stdlib")):
    with pytest.raises(BadConfig, match="name one source"):
      prepare.source_of(**dict(path="", corpus="", tfds="", field="t") | given)


def test_negative_workers_are_refused(tmp_path):
  source = dict(kind="corpus", name="stdlib", split="train", weight=1.0)
  with pytest.raises(BadConfig, match="workers=-1"):
    prepare.stores(
      sources=[source],
      tokenizer="bytes",
      tokenizer_vocab=4096,
      validation=0.1,
      root=str(tmp_path),
      workers=-1,
    )


def test_what_a_config_says_is_not_said_by_a_flag_too():
  names = "path corpus tfds field tokenizer tokenizer_vocab validation".split()
  names += ["validation_path", "root"]

  def given(**values):
    return {
      n: types.SimpleNamespace(present=int(n in values), value=values.get(n))
      for n in names
    }

  prepare._check_alone(given())
  with pytest.raises(BadConfig, match="write --config.data.path=other.txt or"):
    prepare._check_alone(given(path="other.txt"))
  with pytest.raises(BadConfig, match="--corpus is not read beside --config"):
    prepare._check_alone(given(corpus="stdlib"))
