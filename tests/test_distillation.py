"""From a teacher to an exported student, by the commands."""

import json

import pytest

from aigc_jax import run, tree
from aigc_jax.errors import BadConfig
from aigc_jax.planning import summary
from aigc_jax.presets import distilbert
from aigc_jax.trainer import faults
from tests import commands
from tests.data.texts import prose

CONFIG = """
from ml_collections import ConfigDict
from aigc_jax.presets import bert, distilbert

SIZE = dict(vocab=300, dim=16, heads=2, mlp_dim=32, position_length=32)

def get_config(preset):
  name, _, folder = preset.partition(",")
  config = distilbert.get_config("base,stdlib")
  for part, layers in (("student", 2), ("teacher", 4)):
    config.model.parts[part].update(**SIZE, layers=layers)
  config.compute.update(dtype="float32", remat="none", unroll=None)
  config.init_parts.student.layers = (0, 2)
  config.frozen.teacher = f"{folder}/teacher"
  if name == "teacher":
    config.unlock()
    config.model = config.model.parts.teacher
    config.frozen, config.init_parts = {}, {}
    config.objective = bert.get_config("base,stdlib").objective
    config.objective.next_sentence = False
  config.steps = 4
  config.data.update(
    path=f"{folder}/text.txt", tokenizer_vocab=300, batch=8, length=16,
    validation=0.1, root=f"{folder}/data",
  )
  config.checkpoint.update(every_steps=2, keep_every_steps=None)
  config.evaluate.heldout.update(batches=1, every_steps=None)
  return config
"""


@pytest.mark.slow
def test_the_student_has_the_published_size_and_the_teacher_no_moments():
  config = run.read(distilbert.get_config("base"))
  r = run.build(config)
  assert tree.count(r.state.params) == 66_985_530
  assert set(r.state.frozen) == {"teacher"}
  assert tree.count(r.state.opt_state) < 2.01 * tree.count(r.state.params)
  # Embeddings are told apart in a part of a model too.
  last = summary.parameters(r).splitlines()[-1].split()
  embeddings = (30_522 + 512) * 768
  assert last == ["all", "but", "embeddings", f"{66_985_530 - embeddings:,}"]


@pytest.mark.slow
def test_a_student_is_trained_resumed_and_exported(tmp_path):
  (tmp_path / "text.txt").write_text(prose(0, 3000))
  (tmp_path / "own.py").write_text(CONFIG)

  def train(name, workdir, **environ):
    return commands.run(
      "aigc_jax.train", f"--config={tmp_path}/own.py:{name},{tmp_path}",
      f"--workdir={tmp_path / workdir}", environ=environ,
    )  # fmt: skip

  done = train("teacher", "teacher")
  assert done.returncode == 0, done.stderr
  done = train("student", "whole")
  assert done.returncode == 0, done.stderr
  (tmp_path / "parted").mkdir()
  (tmp_path / "parted" / faults.MARK).touch()
  plan = json.dumps({"die_at": [{"site": "step", "step": 3}]})
  assert train("student", "parted", AIGC_JAX_FAULTS=plan).returncode != 0
  done = train("student", "parted")
  assert done.returncode == 0, done.stderr
  one, two = (
    json.loads((tmp_path / name / "result.json").read_text())["digest"]
    for name in ("whole", "parted")
  )
  assert one == two
  saved = tmp_path / "whole" / "checkpoints" / "4" / "manifest.json"
  leaves = {leaf["name"] for leaf in json.loads(saved.read_text())["leaves"]}
  assert not any("teacher" in name for name in leaves)
  out = tmp_path / "hf"
  done = commands.run(
    "aigc_jax.export", f"--workdir={tmp_path}/whole", "--part=student",
    f"--out={out}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  described = json.loads((out / "config.json").read_text())
  assert described["architectures"] == ["DistilBertForMaskedLM"]
  # Another teacher in the same place is not the one of the checkpoints.
  (tmp_path / "teacher").rename(tmp_path / "first")
  done = commands.run(
    "aigc_jax.train", f"--config={tmp_path}/own.py:teacher,{tmp_path}",
    "--config.seed=1", f"--workdir={tmp_path}/teacher",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  done = commands.run(
    "aigc_jax.train", f"--config={tmp_path}/own.py:student,{tmp_path}",
    "--config.steps=6", f"--workdir={tmp_path}/whole",
    "--allow_change=steps",
  )  # fmt: skip
  assert done.returncode == BadConfig.code, done.stderr
  assert "are not those that step 4 was trained beside" in done.stderr
