"""--repeat: what is compared before and after, and what a place means."""

import json

import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.run.origin import check_frozen_there
from aigc_jax.run.places import as_meant, located
from aigc_jax.scaling import repeat
from aigc_jax.trainer import provenance
from configs import text_file
from tests import commands

PRINTS = {"data": "a" * 64, "evaluate.heldout": "b" * 64}
ENTRIES = {"evaluate.heldout": "c" * 64}
ROWS = [
  {"step": n, "train/loss": 5.0 - n, "norm/grad": 0.0, "seconds": n * 0.3,
   "speed/tokens_per_second": n * 7.0}
  for n in (1, 2, 3)
]  # fmt: skip


def write(path, rows, digest=(1, 2), **about):
  """A work directory as a finished run leaves it, but for checkpoints."""
  path.mkdir()
  config = run.read(text_file.get_config())
  told = {
    "folder": str(path.parent), "tokenizer_fingerprint": "d" * 64,
    "data_fingerprint": PRINTS["data"], "heldout_entries": ENTRIES,
    "heldout_fingerprints": {"evaluate.heldout": "b" * 64},
    "packages": provenance.packages(),
    "code": {"commit": None, "sha256": "0" * 64},
  } | about  # fmt: skip
  for name, content in (("config", config), ("run", told)):
    (path / f"{name}.json").write_text(json.dumps(content))
  if digest:
    content = {"step": 3, "digest": list(digest)}
    (path / "result.json").write_text(json.dumps(content))
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text)
  return path


@pytest.fixture
def origin(tmp_path):
  return write(tmp_path / "run", ROWS)


def changed(at: int, **values):
  return [row | values if row["step"] == at else row for row in ROWS]


def test_only_the_clock_may_differ(origin, tmp_path):
  later = [
    row | {"seconds": 9.0, "speed/tokens_per_second": 1.0} for row in ROWS
  ]
  found = repeat.outcome(origin, write(tmp_path / "again", later))
  assert found.equal and "equal bit for bit" in repeat.as_text(found)
  assert found.states == {3: None}


@pytest.mark.parametrize(
  ("rows", "digest", "words"),
  [
    (changed(2, **{"train/loss": 3.0000001}), (1, 2), "step 2, in train/loss"),
    (changed(2, **{"norm/grad": -0.0}), (1, 2), "step 2, in norm/grad"),
    (changed(3, **{"norm/update": 1.0}), (1, 2), "step 3, in norm/update"),
    (ROWS[:2], (1, 2), "only one run has rows of steps 3"),
    (ROWS, (1, 3), "differs at step 3"),
    ([], (1, 2), "only one run has rows of steps 1, 2, 3"),
  ],
)
def test_whatever_else_differs_is_named(origin, tmp_path, rows, digest, words):
  found = repeat.outcome(origin, write(tmp_path / "again", rows, digest))
  assert not found.equal
  assert words in repeat.as_text(found)


def test_a_run_that_was_not_finished_is_compared_as_far_as_it_came(tmp_path):
  part = write(tmp_path / "part", ROWS[:2], digest=None)
  found = repeat.outcome(part, write(tmp_path / "again", ROWS))
  assert found.equal and found.until == 2
  assert "was not finished" in repeat.as_text(found)
  nothing = write(tmp_path / "nothing", [], digest=None)
  assert not repeat.outcome(nothing, tmp_path / "again").equal


def test_what_is_not_as_it_was_is_said(tmp_path):
  packages = provenance.packages() | {"jax": "0.0.1"}
  where = repeat.origin(write(tmp_path / "run", ROWS, packages=packages))
  config = where.config | {"seed": 5}
  text = repeat.differences(where, config, {"data": 1})
  assert "packages.jax: '0.0.1' -> " in text and "seed: " in text
  assert "code: not the same" in text
  assert "machine and settings: not recorded" in text
  assert "devices: not recorded" in text
  same = repeat.differences(where, where.config, {"data": 1})
  assert "config: the same" in same


def test_other_devices_are_said(tmp_path):
  there = write(tmp_path / "run", ROWS)
  about = json.loads((there / "run.json").read_text())
  about["jax"] = provenance.devices({"fsdp": 2}) | {"processes": 2}
  (there / "run.json").write_text(json.dumps(about))
  where = repeat.origin(there)
  text = repeat.differences(where, where.config, {"fsdp": 1})
  assert "devices: " in text and "processes: 2 -> 1" in text
  assert "mesh.fsdp: 2 -> 1" in text
  about["jax"] = provenance.devices({"fsdp": 1})
  (there / "run.json").write_text(json.dumps(about))
  where = repeat.origin(there)
  text = repeat.differences(where, where.config, {"fsdp": 1})
  assert "devices: the same" in text


@pytest.mark.parametrize("what", ["data", "evaluate.heldout", "tokenizer"])
def test_other_data_or_another_tokenizer_is_refused(origin, what):
  where = repeat.origin(origin)
  given = PRINTS | {"tokenizer": "d" * 64}
  repeat.check_data(where, PRINTS, ENTRIES, given["tokenizer"])
  given[what] = "e" * 64
  words = given.pop("tokenizer")
  with pytest.raises(BadConfig, match=f"{what}: .{{12}} -> eeee"):
    repeat.check_data(where, given, ENTRIES, words)


def test_a_run_is_not_repeated_on_top_of_itself(origin, tmp_path):
  (tmp_path / "link").symlink_to(origin)
  with pytest.raises(BadConfig, match="another --workdir"):
    repeat.check_place(repeat.origin(origin), tmp_path / "link")


def test_relative_places_are_of_the_folder_of_the_first_start(tmp_path):
  (tmp_path / "x [1]").mkdir()
  folder = tmp_path / "x [1]"
  (folder / "notes").mkdir()
  (folder / "notes" / "a.md").write_text("text")
  (folder / "hf").mkdir()
  config = run.read(text_file.get_config())
  config["data"] |= {
    "path": "notes/**/*.md", "tokenizer": "hf:hf", "root": "nowhere",
    "validation_path": "/absolute",
    "sources": [{"kind": "text", "path": "notes/a.md"}],
  }  # fmt: skip
  config["init_from"] = "hf"
  found = located(config, str(folder))
  assert found["init_from"] == f"{folder}/hf"
  data = found["data"]
  assert data["tokenizer"] == f"hf:{folder}/hf"
  assert data["root"] == "nowhere" and data["validation_path"] == "/absolute"
  assert data["path"].endswith("/notes/**/*.md") and data["path"][0] == "/"
  assert data["sources"][0]["path"] == f"{folder}/notes/a.md"
  bytes_ = located(config | {"data": config["data"] | {"tokenizer": "bytes"}},
                   str(folder))  # fmt: skip
  assert bytes_["data"]["tokenizer"] == "bytes"


def test_the_config_of_a_run_is_taken_from_any_folder(
  origin, tmp_path, monkeypatch, capsys
):
  path = origin / "config.json"
  config = json.loads(path.read_text())
  config["data"]["path"] = "own.txt"
  path.write_text(json.dumps(config))
  (tmp_path / "own.txt").write_text("text")
  monkeypatch.chdir(tmp_path)
  assert run.configured(str(path), [])["data"]["path"] == "own.txt"
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir("elsewhere")
  found = run.configured("../run/config.json", [("steps", "3")])
  assert found["data"]["path"] == f"{tmp_path}/own.txt" and found["steps"] == 3
  assert f"was started in {tmp_path}" in capsys.readouterr().err
  # Where it went on from another folder, it is that of the last time.
  (tmp_path / "later").mkdir()
  (tmp_path / "later" / "own.txt").write_text("text")
  about = json.loads((origin / "run.json").read_text())
  about["folder"] = f"{tmp_path}/later"
  (origin / "run.3.json").write_text(json.dumps(about))
  found = run.configured(str(path), [])
  assert found["data"]["path"] == f"{tmp_path}/later/own.txt"
  # So it is with what a run is used with, as a frozen part that is read.
  (tmp_path / "later" / "vae").mkdir()
  frozen = {"vae": "vae", "own": None, "gone": "nowhere/x*"}
  found = as_meant(config | {"frozen": frozen}, "../run")["frozen"]
  assert found == frozen | {"vae": f"{tmp_path}/later/vae"}
  (origin / "run.3.json").unlink()
  (origin / "run.json").unlink()
  assert as_meant(config, "../run") == config


def train(*argv, cwd):
  return commands.run("aigc_jax.train", *argv, cwd=cwd)


def test_a_frozen_part_that_is_gone_is_told_by_its_key(tmp_path):
  with pytest.raises(BadConfig, match=r"frozen.vae=x: .*--config.frozen.vae="):
    check_frozen_there("vae", "x")
  (tmp_path / "config.json").touch()
  check_frozen_there("vae", str(tmp_path))
  check_frozen_there("vae", "hf:x")


SOURCES = (
  dict(kind="folder", path="pets"), dict(kind="table", path="x.tsv"),
  dict(kind="json", path="*.jsonl"), dict(kind="librispeech", path="pets"),
)  # fmt: skip


def test_places_of_every_kind_are_of_that_folder(tmp_path):
  (tmp_path / "pets").mkdir()
  for name in ("x.tsv", "y.jsonl"):
    (tmp_path / name).touch()
  config = dict(
    data=dict(kind="images", sources=SOURCES), branch_from="pets",
    frozen=dict(vq="pets", teacher="hf:pets", own=None, gone="gone"),
    evaluate=dict(
      drawn=dict(features="pets", data=dict(sources=SOURCES)),
      spoken=dict(recogniser="hf:pets"),
    ),
  )  # fmt: skip
  found, here = located(config, str(tmp_path)), str(tmp_path)
  paths = [f"{here}/{x['path']}" for x in SOURCES]
  pets = f"{here}/pets"
  entries = found["evaluate"]
  for sources in (
    found["data"]["sources"],
    entries["drawn"]["data"]["sources"],
  ):
    assert [source["path"] for source in sources] == paths
  assert found["branch_from"] == entries["drawn"]["features"] == pets
  assert entries["spoken"]["recogniser"] == f"hf:{pets}"
  assert found["frozen"] == dict(
    vq=pets, teacher=f"hf:{pets}", own=None, gone="gone"
  )


@pytest.mark.slow
def test_a_run_is_repeated_from_its_work_directory_alone(tmp_path):
  here, there = tmp_path / "here", tmp_path / "there"
  for folder in (here, there):
    folder.mkdir()
  lines = "".join(f"line {i} of a text to learn\n" for i in range(400))
  (here / "text.txt").write_text(lines)
  done = train(
    f"--config={commands.ROOT}/configs/text_file.py", "--workdir=run",
    "--config.data.path=text.txt", f"--config.data.root={tmp_path}/stores",
    "--config.steps=4", "--config.data.batch=4", "--config.data.length=16",
    "--config.model.layers=1", "--config.model.dim=16",
    "--config.model.heads=2", "--config.model.kv_heads=2",
    "--config.log.every_steps=1", "--config.optim.warmup_steps=2", cwd=here,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  line = [f"--repeat={here}/run", "--workdir=again"]
  done = train(*line, cwd=there)
  assert done.returncode == 0, done.stdout + done.stderr
  for words in ("code: the same", "packages: the same",
                "machine and settings: the same", "devices: the same",
                "equal bit for bit at all 4 steps",
                "state: equal digests at step 4"):  # fmt: skip
    assert words in done.stdout, done.stdout
  again = train(*line, cwd=there)
  assert again.returncode == 0 and "equal bit for bit" in again.stdout
  other = train(
    line[0], "--workdir=other", "--config.optim.learning_rate=0.5", cwd=there
  )
  assert other.returncode == 80, other.stdout + other.stderr
  assert "optim.learning_rate: " in other.stdout
  assert "they part at step 1, in norm/" in other.stdout, other.stdout
  assert "it is not" in other.stderr
  (here / "text.txt").write_text("Z" + lines[1:])
  refused = train(line[0], "--workdir=changed", cwd=there)
  assert refused.returncode == 78
  assert "not what" in refused.stderr and "\n  data: " in refused.stderr
  assert train(line[0], line[0].replace("repeat", "workdir"),
               cwd=there).returncode == 78  # fmt: skip
  both = train(*line, "--config=x.py", cwd=there)
  assert both.returncode == 78


@pytest.mark.slow
def test_a_run_begins_once_more_from_the_step_of_another_that_it_began_from(
  tmp_path,
):
  """The other has gone on since then; places are as they were typed."""
  lines = "".join(f"line {i} of a text to learn\n" for i in range(400))
  (tmp_path / "text.txt").write_text(lines)

  def run(*line):
    done = train(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  how = [
    f"--config={commands.ROOT}/configs/text_file.py",
    "--config.data.path=text.txt", f"--config.data.root={tmp_path}/stores",
    "--config.data.batch=4", "--config.data.length=16",
    "--config.model.layers=1", "--config.model.dim=16",
    "--config.model.heads=2", "--config.model.kv_heads=2",
    "--config.log.every_steps=1", "--config.optim.warmup_steps=2",
  ]  # fmt: skip
  run(*how, "--workdir=first", "--config.steps=2")
  run(*how, "--workdir=second", "--config.steps=2", "--config.init_from=first")
  run(*how, "--workdir=first", "--config.steps=4", "--allow_change=steps")
  said = run("--repeat=second", "--workdir=again")
  assert "first, step 2" in said, said
  assert "equal bit for bit at all 2 steps" in said, said
