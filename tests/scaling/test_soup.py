"""Averages of the weights of kept checkpoints."""

import json
import shutil

import jax
import numpy as np
import pytest

from aigc_jax import data, files, run, sharding, tree
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.presets import skeleton
from aigc_jax.scaling import soup
from aigc_jax.trainer import history, identity
from tests import commands

SMALL = (
  "--config.data.batch=2", "--config.data.length=16", "--config.model.dim=16",
  "--config.model.heads=2", "--config.model.layers=1",
  "--config.model.mlp_dim=24", "--config.objective.chunk=None",
  "--config.checkpoint.every_steps=2", "--config.checkpoint.keep=9",
  "--config.data.validation=0.2", "--config.steps=6",
  "--config.optim.warmup_steps=1", "--config.optim.learning_rate=0.01",
  "--config.optim.average=0.9",
)  # fmt: skip


def write_run(folder, seed, steps=(2, 4, 6), average=None):
  """What a run leaves that training never made: a checkpoint of each step."""
  config = skeleton()
  config.seed = seed
  config.data.update(batch=2, length=16, tokenizer="bytes")
  config.model.update(vocab=257, layers=1, dim=16, heads=2, mlp_dim=24)
  config.optim.average = average
  config = run.read(config)
  folder.mkdir()
  words = data.load_tokenizer("bytes")
  data.save(words, folder / "tokenizer")
  ours = identity.new().going_on(0, folder)
  files.write_json(folder / "run.json", {"run": ours.as_json()})
  saved = history.checkpoints_in(folder, ours, keep=9)
  shapes = run.abstract_params(
    run.model_of(config), sharding.mesh_of(jax.devices()[0])
  )
  meta = {
    "model": config["model"], "tokenizer_fingerprint": words.fingerprint,
  }  # fmt: skip
  for step in steps:
    draw = np.random.default_rng((seed, step))
    params = jax.tree.map(
      lambda x, draw=draw: jax.numpy.asarray(
        draw.standard_normal(x.shape, np.float32)
      ),
      shapes,
    )
    content = {"params": params, "opt_state": jax.numpy.ones(2)}
    saved.commit(step, content | ({"average": params} if average else {}), meta)
  saved.close()
  files.write_json(folder / "config.json", config)
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with the runs a and b (another seed), and another model's."""
  folder = tmp_path_factory.mktemp("soup")
  config = write_run(folder / "a", 0)
  write_run(folder / "b", 1)
  shutil.copytree(folder / "a", folder / "wide")
  config["model"]["mlp_dim"] = 32
  (folder / "wide/config.json").write_text(json.dumps(config))
  return folder


@pytest.fixture(scope="module")
def averaged(runs):
  """What the command said of the average of some that both runs kept."""
  return commands.run(
    "aigc_jax.report", "soup", str(runs / "a"), str(runs / "b"), "--steps=4,6",
    f"--out={runs / 'both'}",
  )  # fmt: skip


def params(where, step=None):
  found = run.load(str(where), step=step).params
  return {n: np.asarray(x) for n, x in tree.flat(found).items()}


@pytest.mark.slow
def test_an_average_is_the_mean_of_all_named_in_float64(runs, averaged):
  assert averaged.returncode == 0, averaged.stderr
  each = [params(runs / name, step) for name in "ab" for step in (4, 6)]
  ours = params(runs / "both")
  assert ours.keys() == each[0].keys()
  for name, x in ours.items():
    wanted = np.mean([np.float64(e[name]) for e in each], axis=0)
    np.testing.assert_array_equal(x, wanted.astype(np.float32), err_msg=name)


def test_a_mean_is_exact_where_float32_would_lose_what_is_small(monkeypatch):
  values = [2.0**24, 1.0, 1.0, -(2.0**24)]  # in float32 this sums to 0

  class Loaded:
    fixed = None
    config = {"frozen": {}, "model": {"kind": "decoder"}}

    def __init__(self, x):
      self.params = {"w": np.full(3, x, np.float32)}

  monkeypatch.setattr(run, "load", lambda where, step: Loaded(values[step]))
  of = [soup.Source("a", i, {}) for i in range(4)]
  found, _ = soup.mean(of)
  np.testing.assert_array_equal(found["w"], np.full(3, 0.5, np.float32))


@pytest.mark.slow
def test_where_no_data_is_prepared_losses_are_left_out(runs, averaged):
  assert "not measured" in averaged.stdout
  assert f"evaluate --workdir={runs / 'both'} --prepare" in averaged.stdout


@pytest.mark.slow
def test_run_json_says_of_what_an_average_is(runs, averaged):
  about = run.provenance_in(runs / "both")
  assert [(s["workdir"], s["step"]) for s in about["soup"]] == [
    (str(runs / name), step) for name in "ab" for step in (4, 6)
  ]
  ids = {s["run"] for s in about["soup"]}
  assert len(ids) == 2 and about["run"]["id"] not in ids
  assert all(s["digest"] for s in about["soup"])


def test_the_last_kept_of_one_run_are_averaged(runs):
  of = soup.sources([str(runs / "a")], last=2)
  assert [s.step for s in of] == [4, 6]
  assert [s.step for s in soup.sources([str(runs / "a")])] == [2, 4, 6]


@pytest.mark.parametrize(
  "names, how, words",
  [
    ("a wide", {}, "wide is another model than"),
    ("a a", {}, "named twice"),
    ("a", dict(last=9), "has kept 3 checkpoints, of steps 2, 4, 6"),
    ("a", dict(steps=[6]), "two checkpoints or more, and this is one"),
    ("a", dict(steps=[3, 6]), "no whole checkpoint of step 3"),
    ("nowhere", {}, "holds no run"),
  ],
)
def test_what_has_no_average_is_refused_by_name(runs, names, how, words):
  with pytest.raises(BadConfig, match=words):
    soup.sources([str(runs / name) for name in names.split()], **how)


def test_a_checkpoint_of_another_run_is_refused(runs, tmp_path):
  shutil.copytree(runs / "a", tmp_path / "a")
  shutil.rmtree(tmp_path / "a/checkpoints/4")
  shutil.copytree(runs / "b/checkpoints/4", tmp_path / "a/checkpoints/4")
  with pytest.raises(BadConfig, match="no whole checkpoint of step 4 of this"):
    soup.sources([str(tmp_path / "a")])


def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(runs, tmp_path):
  shutil.copytree(runs / "a", tmp_path / "a")
  arrays = (tmp_path / "a/checkpoints/4/arrays").rglob("*")
  largest = max(
    (p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 0xFF
  largest.write_bytes(content)
  with pytest.raises((BadConfig, StorageFailure), match=r"checkpoint.*4"):
    soup.write(tmp_path / "out", soup.sources([str(tmp_path / "a")]))
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_a_folder_that_is_there_is_not_written_into(runs, averaged):
  of = soup.sources([str(runs / "a")])
  with pytest.raises(BadConfig, match="is there already"):
    soup.write(runs / "both", of)
  with pytest.raises(BadConfig, match="there is no folder"):
    soup.write(runs / "no/such/one", of)


@pytest.mark.slow
def test_it_is_no_run_that_goes_on_and_says_so(runs, averaged):
  done = commands.run(
    "aigc_jax.train", f"--config={runs / 'both'}/config.json",
    f"--workdir={runs / 'both'}",
  )  # fmt: skip
  assert done.returncode == 78, done.stderr
  assert "holds parameters alone" in done.stderr
  assert "--config.init_from=" in done.stderr


@pytest.mark.slow
def test_every_command_reads_the_average_of_a_real_run(tmp_path):
  """Losses before and after are those that training and evaluate find."""
  text = "".join(f"line {i} of a text\n" for i in range(400))
  (tmp_path / "text.txt").write_text(text)
  both = f"--workdir={tmp_path / 'both'}"
  trained = (
    "train", "--config=configs/text_file.py",
    f"--config.data.path={tmp_path}/text.txt",
    f"--config.data.root={tmp_path}/stores", *SMALL,
  )  # fmt: skip
  told = {}
  for module, *flags in (
    (*trained, f"--workdir={tmp_path / 'a'}"),
    ("report", "soup", str(tmp_path / "a"), f"--out={tmp_path / 'both'}"),
    ("evaluate", both),
    ("generate", both, "--prompt=line", "--max_tokens=4"),
    ("export", both, f"--out={tmp_path / 'exported'}"),
    (
      *trained, f"--workdir={tmp_path / 'from'}",
      f"--config.init_from={tmp_path / 'both'}",
    ),
  ):  # fmt: skip
    done = commands.run(f"aigc_jax.{module}", *flags)
    assert done.returncode == 0, f"{module}: {done.stderr}"
    told[module] = done.stdout
  rows = dict(
    line.rsplit(None, 1) for line in told["report"].splitlines()[-4:-2]
  )
  found = files.read_json(tmp_path / "both/evaluate/6.json")["scores"]
  after = found["heldout"]["loss"]["value"]
  before = run.result_in(tmp_path / "a")["eval/heldout/loss"]
  assert float(rows[f"{tmp_path}/both, the average"]) == pytest.approx(
    after, abs=1e-5
  )
  assert float(rows[f"{tmp_path}/a, step 6"]) == pytest.approx(before, abs=1e-5)
  assert after != before


def test_what_is_not_true_of_all_is_not_said_of_their_average():
  """Nor are losses of two held-out sets shown as of one."""

  def source(name, held, data):
    prints = {"evaluate.heldout": held}
    meta = {"heldout_fingerprints": prints, "data_fingerprint": data}
    return soup.Source(name, 5, {"meta": meta | {"packages": {"jax": name}}})

  alike = [source("a", "h", "d"), source("b", "h", "d")]
  assert not soup.notes(alike) and len(soup.shared(alike)) == 3
  other = [source("a", "h", "d"), source("b", "g", "e")]
  assert set(soup.shared(other)) == {"packages"}
  assert ["heldout is other" in line for line in soup.notes(other)] == [
    True, False
  ]  # fmt: skip
