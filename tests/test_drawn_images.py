"""Drawn images beside held-out ones, by the commands."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.layers.cpu import onednn
from configs import dit, gan
from tests import commands

CONFIG = """
from configs import digits, gan

def get_config(preset):
  name, _, folder = preset.partition(",")
  if name == "judge":
    config = digits.get_config("vit")
    config.model.update(layers=1, dim=16, heads=2, mlp_dim=24)
  else:
    config = gan.get_config("tiny,digits")
    config.model.update(widths=(6, 8), latent=5)
    how = dict(every_steps=2, sampler="heun", steps=1, guidance=1.0,
               weights="average")
    config.evaluate.grid = dict(kind="images", rows=2, columns=3, labels=(),
                                **how)
    config.evaluate.drawn = dict(
      kind="image_scores", features=f"{folder}/judge", images=20,
      data=dict(split="validation"), **how)
    if name == "alone":
      del config.evaluate.grid, config.evaluate.drawn
  config.steps = 4
  config.data.update(batch=16, root=f"{folder}/data")
  config.checkpoint.every_steps = 2
  config.optim.warmup_steps = 0
  config.evaluate.heldout.every_steps = None
  return config
"""


@pytest.mark.slow
def test_a_gan_is_looked_at_and_scored_while_it_is_trained_and_after(tmp_path):
  (tmp_path / "own.py").write_text(CONFIG)

  def done(module, *words):
    found = commands.run(f"aigc_jax.{module}", *words)
    assert found.returncode == 0, found.stderr
    return found

  def train(name):
    done(
      "train", f"--config={tmp_path}/own.py:{name},{tmp_path}",
      f"--workdir={tmp_path}/{name}",
    )  # fmt: skip
    return json.loads((tmp_path / name / "result.json").read_text())

  def evaluate(features):
    out = tmp_path / "scores.json"
    out.unlink(missing_ok=True)
    done(
      "evaluate", f"--workdir={tmp_path}/whole", "--weights=average",
      f"--features={features}", "--images=20", f"--out={out}",
    )  # fmt: skip
    found = json.loads(out.read_text())["scores"]["heldout, drawn"]
    return {name: score["value"] for name, score in found.items()}

  train("judge")
  whole, alone = train("whole"), train("alone")
  # Looking at a run changes nothing of it.
  assert whole["digest"] == alone["digest"]
  rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
  scored = [row for row in map(json.loads, rows) if "eval/drawn/fid" in row]
  assert [row["step"] for row in scored] == [2, 4]
  samples = {path.name for path in (tmp_path / "whole" / "samples").iterdir()}
  assert samples == {"2.grid.png", "4.grid.png"}
  done("report", "gallery", f"{tmp_path}/whole", f"--out={tmp_path}/x.html")
  page = (tmp_path / "x.html").read_text()
  assert page.count("data:image/png;base64,") == 2 and "drawn/fid" in page

  own = evaluate(tmp_path / "judge")
  assert own["fid"] == pytest.approx(whole["eval/drawn/fid"], rel=1e-3)
  assert own["training_fid"] < own["fid"]
  hf = tmp_path / "hf"
  done("export", f"--workdir={tmp_path}/judge", f"--out={hf}")
  theirs = evaluate(f"hf:{hf}")
  assert theirs == pytest.approx(own, rel=1e-3)
  (hf / "preprocessor_config.json").unlink()
  found = commands.run(
    "aigc_jax.evaluate", f"--workdir={tmp_path}/whole", f"--features=hf:{hf}"
  )
  assert found.returncode == 65 and "preprocessor_config.json" in found.stderr


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--images=3"], "add --features=DIR"),
    (["--features=x", "--text=README.md"], "--text is of text"),
    (["--features=x", "--sampler=walk"], "--sampler 'walk' is unknown"),
    (["--features=x", "--images=-1"], "--images=-1"),
  ],
)
def test_flags_that_do_not_go_together_are_refused(words, message):
  found = commands.run("aigc_jax.evaluate", "--workdir=nowhere", *words)
  assert found.returncode == BadConfig.code and message in found.stderr


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(rows=0), "evaluate.grid.rows=0"),
    (dict(sampler="walk"), "evaluate.grid.sampler 'walk'"),
    (dict(labels=("1",)), "knows no labels"),
    (dict(weights="mean"), "evaluate.grid.weights"),
  ],
)
def test_a_grid_that_cannot_be_drawn_is_refused_before_the_run(change, message):
  config = gan.get_config("tiny,digits")
  config.evaluate.grid = dict(
    kind="images", every_steps=2, rows=2, columns=3, labels=(),
    sampler="heun", steps=1, guidance=1.0,
  )  # fmt: skip
  run.check_evaluators(run.read(config))
  config.evaluate.grid.update(change)
  with pytest.raises(BadConfig, match=message):
    run.check_evaluators(run.read(config))


def test_grids_of_a_model_that_draws_nothing_are_refused():
  from configs import digits

  config = digits.get_config("vit")
  config.evaluate.grid = dict(
    kind="images", every_steps=2, rows=2, columns=3, labels=(),
    sampler="heun", steps=1, guidance=1.0,
  )  # fmt: skip
  with pytest.raises(BadConfig, match="evaluate.grid makes images.*Vit"):
    run.check_evaluators(run.read(config))


@pytest.mark.parametrize("library", ["onednn", "xla"])
def test_images_are_drawn_by_the_library_that_the_run_multiplies_by(
  library, monkeypatch
):
  if not onednn.usable("float32"):
    pytest.skip("this JAX or CPU has no oneDNN")
  config = dit.get_config("tiny,digits")
  config.model.update(layers=1, dim=16, heads=2, mlp_dim=24)
  config.compute.library = library
  config = run.read(config)
  with jax.set_mesh(sharding.mesh_of(jax.devices()[0])):
    model = run.model_of(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example())
    variables = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), nn.unbox(shapes)
    )
    draws = run.drawing.sampler_of(
      config, model, variables, sampler="euler", steps=1,
      guidance=1.0, seed=0,
    )  # fmt: skip
    traced = []
    monkeypatch.setattr(onednn, "einsum", lambda *a: traced.append(a) or None)
    draw = draws._draw

    def traced_alone(*given):
      return np.zeros(jax.eval_shape(draw, *given).shape)

    monkeypatch.setattr(draws, "_draw", traced_alone)
    assert draws(np.arange(2), np.zeros(2), 2).shape == (2, 8, 8, 1)
  assert bool(traced) == (library == "onednn")
