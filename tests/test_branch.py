"""A branch goes on from another run, and is the run its config describes."""

import contextlib
import json
import os
import shutil

import jax
import numpy as np
import pytest

from aigc_jax import data, files, run, sharding
from aigc_jax.errors import BadConfig, Refusal
from aigc_jax.optim import schedules
from aigc_jax.run import branch
from aigc_jax.timing import switches
from aigc_jax.trainer import manifest
from configs import bench
from tests import commands
from tests.sweep import slow, sweep
from tests.test_compute import of_before

CONFIG = "configs/text_file.py"
SMALL = (
  "--config.data.batch=2", "--config.data.length=16", "--config.model.dim=16",
  "--config.model.heads=2", "--config.model.layers=1",
  "--config.model.mlp_dim=24", "--config.objective.chunk=None",
  "--config.log.every_steps=1", "--config.checkpoint.every_steps=4",
  "--config.checkpoint.keep=9", "--config.data.validation=0.2",
  "--config.optim.warmup_steps=2", "--config.model.dropout=0.1",
)  # fmt: skip
RISING = {"optim.schedule": "constant", "optim.warmup_steps": 4, "steps": 9}
STABLE = ("--config.optim.schedule=constant", "--config.steps=8")
DECAY = (
  "--config.optim.schedule=wsd", "--config.optim.decay_steps=3",
  "--config.steps=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  """train(name, *flags): the finished command; its work directory is name."""
  folder = tmp_path_factory.mktemp("branches")
  text = "".join(f"line {i} of a text\n" for i in range(400))
  (folder / "text.txt").write_text(text)

  def run(name, *flags):
    return commands.run(
      "aigc_jax.train", f"--config={CONFIG}", f"--workdir={folder / name}",
      f"--config.data.path={folder}/text.txt",
      f"--config.data.root={folder}/stores", *SMALL, *flags,
      environ={"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip

  run.folder = folder
  done = run("trunk", *STABLE)
  assert done.returncode == 0, done.stderr
  return run


def told(folder):
  """What the rows say of learning, and the digest at the end."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [
    {k: x for k, x in json.loads(line).items() if "second" not in k}
    for line in lines
  ]
  return rows, json.loads((folder / "result.json").read_text())["digest"]


def learnt(folder):
  rows, digest = told(folder)
  losses = {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}
  rates = {r["step"]: r.get("optim/lr") for r in rows}
  batches = {r["step"]: r.get("batch_hash") for r in rows}
  return losses, rates, batches, digest


def from_trunk(step):
  return ("--config.branch_from={}/trunk", f"--config.branch_step={step}")


def branched(train, name, step, *flags):
  where = f"--config.branch_from={train.folder / 'trunk'}"
  return train(name, where, f"--config.branch_step={step}", *flags)


def test_rows_of_later_steps_and_what_is_no_row_stay_with_the_trunk(tmp_path):
  path = tmp_path / "metrics.jsonl"
  kept = b'{"step": 3}\n{"event": "x"}\n'
  odd = b'{"step": "3"}\n{"step": true}\n[1]\n{"step": 1e999}\n\xff\n'
  deep = b"[" * 100_000 + b"\n"
  path.write_bytes(kept + odd + deep + b'{"step": 5}\n{"step": 4, "half')
  assert b"".join(branch._lines_until(path, 4)) == kept


def test_the_journal_of_a_trunk_may_be_of_any_size(tmp_path):
  path = tmp_path / "metrics.jsonl"
  row = b'{"step": 3, "x": "' + b"x" * (1 << 20) + b'"}\n'
  path.write_bytes(row * 17)  # more than other files may have
  assert path.stat().st_size > files.LIMIT
  assert sum(1 for _ in branch._lines_until(path, 4)) == 17


def trunk_in(folder, step=5):
  """(its folder, its config) of a run with a checkpoint that is no state."""
  config = switches.changed(run.read(bench.get_config("tiny")), RISING)
  path = folder / "trunk"
  saved = path / "checkpoints" / str(step)
  (saved / "arrays/d").mkdir(parents=True)
  (saved / "arrays/d/1").write_bytes(bytes(24))
  (saved / "arrays/rest").write_bytes(b"rest")
  leaf = {"name": "w", "shape": [6], "dtype": "float32", "digest": [1, 2]}
  sha256 = run.fingerprint(config)
  manifest.write(
    saved, step=step, leaves=[leaf], meta={"config_sha256": sha256}
  )
  rows = "".join(f'{{"step": {i + 1}}}\n' for i in range(8))
  (path / "metrics.jsonl").write_text(rows)
  for name in ("config.json", "events.jsonl", "data.json"):
    (path / name).write_text(json.dumps(config) + "\n")
  data.save(data.load_tokenizer("bytes"), path / "tokenizer")
  return path, config


def begin(workdir, config, trunk, step=5, **change):
  """The config of a branch, whose copy is made; what was said."""
  workdir.mkdir(exist_ok=True)
  own = {"branch_from": str(trunk), "branch_step": step}
  config, said = switches.changed(config, own | change), []
  branch.check(workdir, config)
  mesh = sharding.mesh_of(jax.devices()[0])
  branch.begin(workdir, config, mesh, True, said.append)
  return config, said


def content(folder):
  """{name: bytes} below a folder, but for the note of a branch."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != branch.MARK
  }


def test_a_branch_has_what_its_trunk_was_at_the_step_and_nothing_else(tmp_path):
  trunk, config = trunk_in(tmp_path)
  expected = content(trunk)
  os.mkfifo(trunk / "checkpoints/5/pipe")
  (trunk / "checkpoints/5/arrays/more").write_text("not of the checkpoint")
  (trunk / "samples").mkdir()
  (trunk / "samples/5.txt").write_text("later")
  begin(tmp_path / "new", config, trunk)
  found = content(tmp_path / "new")
  rows = found.pop("metrics.jsonl")
  assert rows == b"".join(b'{"step": %d}\n' % i for i in range(1, 6))
  del expected["metrics.jsonl"]
  assert found == expected


@pytest.mark.parametrize("at", sweep(range(24), 9))
def test_a_copy_that_is_killed_anywhere_is_made_again(
  at, tmp_path, monkeypatch
):
  trunk, config = trunk_in(tmp_path)
  begin(tmp_path / "whole", config, trunk)
  left, sync, replace = [at], os.fsync, os.replace

  def killed(call, *given):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    return call(*given)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", lambda fd: killed(sync, fd))
    patch.setattr(os, "replace", lambda a, b: killed(replace, a, b))
    with contextlib.suppress(KeyboardInterrupt):
      begin(tmp_path / "new", config, trunk)
  begin(tmp_path / "new", config, trunk)
  assert content(tmp_path / "new") == content(tmp_path / "whole")
  marks = [
    json.loads((tmp_path / name / branch.MARK).read_text())
    for name in ("new", "whole")
  ]
  assert marks[0] == marks[1] and "copying" not in marks[0]


def test_a_branch_whose_config_is_lost_is_refused_and_stays(tmp_path):
  trunk, config = trunk_in(tmp_path)
  own, _ = begin(tmp_path / "new", config, trunk)
  (tmp_path / "new/config.json").write_text(json.dumps(own))  # of its start
  (tmp_path / "new/checkpoints/9").mkdir()
  (tmp_path / "new/checkpoints/9/state").write_text("of days")
  (tmp_path / "new/config.json").unlink()
  before = content(tmp_path / "new")
  with pytest.raises(BadConfig, match="its config.json is gone: put it back"):
    begin(tmp_path / "new", config, trunk)
  assert content(tmp_path / "new") == before


def test_what_is_not_of_the_copy_is_never_removed(tmp_path):
  trunk, config = trunk_in(tmp_path)
  new = tmp_path / "new"
  begin(new, config, trunk)
  (new / "config.json").unlink()
  mark = json.loads((new / branch.MARK).read_text()) | {"copying": True}
  (new / branch.MARK).write_text(json.dumps(mark))
  (new / "notes.txt").write_text("of the user")
  with pytest.raises(BadConfig, match="not empty .notes.txt."):
    begin(new, config, trunk)
  assert (new / "notes.txt").is_file() and (new / "checkpoints").is_dir()


def test_a_trunk_whose_config_was_edited_is_refused(tmp_path):
  trunk, config = trunk_in(tmp_path)
  edited = switches.changed(config, {"optim.b2": 0.5})
  (trunk / "config.json").write_text(json.dumps(edited))
  with pytest.raises(BadConfig, match="config.json is not that of step 5"):
    begin(tmp_path / "new", edited, trunk)
  assert not list((tmp_path / "new").iterdir())


def test_a_trunk_that_was_changed_later_is_branched_from_as_it_was(tmp_path):
  trunk, config = trunk_in(tmp_path)
  later = switches.changed(config, {"optim.b2": 0.5})
  (trunk / "config.before-7.json").write_text(json.dumps(config))
  (trunk / "config.json").write_text(json.dumps(later))
  begin(tmp_path / "new", config, trunk)
  assert run.config_in(tmp_path / "new")["optim"] == config["optim"]


def test_a_trunk_that_was_changed_before_is_told(tmp_path):
  trunk, config = trunk_in(tmp_path)
  first = switches.changed(config, {"optim.b2": 0.5})
  (trunk / "config.before-3.json").write_text(json.dumps(first))
  _, said = begin(tmp_path / "new", config, trunk)
  assert said == ["the trunk was changed at step 3: optim.b2: 0.5 -> 0.95"]
  first = switches.changed(config, {"optim.learning_rate": 0.5})
  (trunk / "config.before-3.json").write_text(json.dumps(first))
  with pytest.raises(BadConfig, match="at step 0 the learning rate"):
    begin(tmp_path / "other", config, trunk)


@pytest.mark.parametrize(
  "name", ["events.jsonl", "data.json", "config.json", "tokenizer"]
)
def test_links_in_a_trunk_are_refused_by_name(name, tmp_path):
  trunk, config = trunk_in(tmp_path)
  os.rename(trunk / name, tmp_path / "elsewhere")
  (trunk / name).symlink_to(tmp_path / "elsewhere")
  with pytest.raises(Refusal, match=f"{name} is a link to"):
    begin(tmp_path / "new", config, trunk)


def test_a_trunk_by_another_name_is_the_same(tmp_path):
  trunk, config = trunk_in(tmp_path)
  begin(tmp_path / "new", config, trunk)
  (tmp_path / "alias").symlink_to(trunk)
  for name in (f"{trunk}/../trunk", tmp_path / "alias"):
    begin(tmp_path / "new", config, name)
  with pytest.raises(BadConfig, match="is this work directory itself"):
    begin(tmp_path / "empty", config, f"{tmp_path}/trunk/../empty")
  with pytest.raises(BadConfig, match="is a branch of"):
    begin(tmp_path / "new", config, tmp_path / "other")


@pytest.mark.parametrize(
  "trunk, words",
  [
    ("hf:folder", "--config.init_from=hf:folder begins"),
    ("gs://bucket/run", "copy it here"),
  ],
)
def test_what_is_no_run_of_this_machine_is_no_trunk(trunk, words, tmp_path):
  with pytest.raises(BadConfig, match=words):
    begin(tmp_path / "new", run.read(bench.get_config("tiny")), trunk)


def test_only_the_first_start_of_a_branch_may_change_more(tmp_path):
  trunk, config = trunk_in(tmp_path)
  own, _ = begin(tmp_path / "new", config, trunk)
  options = run.Options()
  assert (
    "steps" in branch.options_of(tmp_path / "new", own, options).allow_change
  )
  (tmp_path / "new/config.json").write_text(json.dumps(own))
  for step in (5, None):  # None is the step that it has
    again = own | {"branch_step": step}
    assert branch.options_of(tmp_path / "new", again, options) is options


def test_a_step_without_a_trunk_is_refused(tmp_path):
  config = {"branch_from": None, "branch_step": 4}
  with pytest.raises(BadConfig, match="branch_step=4 without branch_from=DIR"):
    branch.check(tmp_path, config)


@pytest.mark.parametrize(
  "step, change, words",
  [
    (4, {}, "is in the warm-up of"),
    slow((0, {}, "is in the warm-up of")),
    slow((5, {}, None)),
    (8, {"optim.schedule": "wsd", "optim.decay_steps": 1}, None),
    (8, {"optim.schedule": "wsd", "optim.decay_steps": 3}, "at step 7 the"),
    (5, {"optim.learning_rate": 0.5}, "at step 0 the learning rate"),
  ],
)
def test_rates_of_before_the_branch_are_those_of_the_trunk(
  step, change, words, tmp_path
):
  trunk = switches.changed(run.read(bench.get_config("tiny")), RISING)
  (tmp_path / "config.json").write_text(json.dumps(trunk))
  config = switches.changed(trunk, change)
  mesh = sharding.mesh_of(jax.devices()[0])

  def check():
    whole = branch.Trunk(tmp_path, step, {}, ((0, "config.json"),))
    branch.check_schedule(config, mesh, whole)

  if words is None:
    return check()
  with pytest.raises(BadConfig, match=words):
    check()


def test_a_shorter_branch_of_a_cosine_is_told_the_decay_that_it_needs(tmp_path):
  change = {
    "steps": 40, "optim.schedule": "cosine", "optim.warmup_steps": 4,
    "optim.decay_steps": None, "optim.warmup_fraction": None,
  }  # fmt: skip
  trunk = switches.changed(run.read(bench.get_config("tiny")), change)
  (tmp_path / "config.json").write_text(json.dumps(trunk))
  mesh = sharding.mesh_of(jax.devices()[0])
  whole = branch.Trunk(tmp_path, 20, {}, ((0, "config.json"),))
  shorter = switches.changed(trunk, {"steps": 30})
  with pytest.raises(BadConfig, match=r"--config.optim.decay_steps=36\)"):
    branch.check_schedule(shorter, mesh, whole)
  way_out = switches.changed(shorter, {"optim.decay_steps": 36})
  branch.check_schedule(way_out, mesh, whole)


@pytest.mark.slow
def test_a_branch_is_the_run_its_config_would_have_been(train):
  done = branched(train, "decay", 4, *DECAY)
  assert done.returncode == 0, done.stderr
  assert "continuing from step 4" in done.stdout
  done = train("whole", *DECAY)
  assert done.returncode == 0, done.stderr
  found, whole = (learnt(train.folder / x) for x in ("decay", "whole"))
  assert found == whole
  trunk = learnt(train.folder / "trunk")
  assert trunk[0][4] == found[0][4] and trunk[-1] != found[-1]


@pytest.mark.slow
def test_a_branch_of_an_equal_config_is_the_trunk(train):
  done = branched(train, "same", 4, *STABLE)
  assert done.returncode == 0, done.stderr
  found, trunk = (learnt(train.folder / x) for x in ("same", "trunk"))
  assert found == trunk


@pytest.mark.slow
def test_a_run_with_a_config_of_before_goes_on_to_the_same_bits(train):
  """Before there was a section compute, its keys were elsewhere."""
  folder = train.folder / "before"
  shutil.copytree(train.folder / "trunk", folder)
  done = train("before", *STABLE, "--rewind=4")
  assert done.returncode == 0, done.stderr
  old = of_before(json.loads((folder / "config.json").read_text()))
  (folder / "config.json").write_text(json.dumps(old))
  done = train("before", *STABLE)
  assert done.returncode == 0, done.stderr
  assert "continuing from step 4" in done.stdout
  assert json.loads((folder / "config.json").read_text())["compute"]
  # Word for word, as checkpoints know their config by its hash.
  assert json.loads((folder / "config.before-4.json").read_text()) == old
  assert learnt(folder) == learnt(train.folder / "trunk")


@pytest.mark.slow
def test_a_copy_that_was_not_finished_is_made_anew(train):
  folder = train.folder / "half"
  (folder / "checkpoints" / "4").mkdir(parents=True)
  (folder / "metrics.jsonl").write_text('{"step": 3}\n')
  mark = {"from": str(train.folder / "trunk"), "step": 4, "copying": True}
  (folder / "branch.json").write_text(json.dumps(mark))
  done = branched(train, "half", 4, *STABLE)
  assert done.returncode == 0, done.stderr
  assert learnt(folder) == learnt(train.folder / "trunk")


@pytest.mark.slow
def test_what_cannot_be_branched_from_is_refused_by_name(train):
  cosine = ("--config.optim.schedule=cosine", "--config.steps=8")
  cases = [
    (("no", 4, *cosine), "at step 3 the learning rate of"),
    (("no", 5, *STABLE), "no whole checkpoint of step 5"),
    (("no", 4, *STABLE, "--config.model.dim=32"), "does not fit the config"),
    (("no", 4, *STABLE, "--config.optim.b2=0.5"), "another config"),
  ]
  for (name, step, *flags), words in cases:
    done = branched(train, name, step, *flags)
    assert done.returncode == 78 and words in done.stderr, done.stderr
  assert not (train.folder / "no" / "result.json").exists()
  done = train("trunk", *STABLE, f"--config.branch_from={train.folder}/other")
  assert done.returncode == 78 and "no branch" in done.stderr, done.stderr


@pytest.mark.parametrize(
  ("saved", "way"),
  [
    ((2, 4, 6), "there; branch from its checkpoint of step 4, or keep the"),
    ((1, 6), "there; keep the schedule as it was"),
    (None, "there; branch from step 5 at the latest, or keep the"),
  ],
)
def test_a_branch_is_told_of_checkpoints_that_are_there(saved, way):
  rates = np.array([0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])  # 0 and 1 warm up
  ours = rates - 0.1 * (np.arange(7) >= 5)
  with pytest.raises(BadConfig, match=way):
    branch.check_rates(rates, ours, "trunk", saved)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_longer_branch_keeps_the_rates_of_a_trunk_that_it_names(kind):
  """What a refused branch is told to set."""
  options = dict(learning_rate=0.5, warmup_steps=3, final_fraction=0.1)
  at = np.arange(9)
  trunk, branched, other = (
    np.asarray(
      schedules.build(kind=kind, steps=steps, decay_steps=decay, **options)(at)
    )
    for steps, decay in ((12, None), (20, 9), (20, None))
  )
  branch.check_rates(trunk, branched, "trunk", (8,))
  with pytest.raises(BadConfig, match="decay_steps=N, the trunk's steps"):
    branch.check_rates(trunk, other, "trunk", (8,))
