"""None is derived, all or nothing: everywhere, also for configs of before."""

import json
import logging

import pytest

from aigc_jax import run
from aigc_jax.models.decoder import widths
from aigc_jax.presets import skeleton
from aigc_jax.run import spelling

OLD = {
  "total_tokens": 0, "init_from": "", "mesh.fsdp": -1, "data.path": "",
  "model.head_dim": 0, "model.position_length": 0,
  "model.rotary_local_base": 0.0, "model.attention_scale": 0.0,
  "model.attention_softcap": 0.0, "model.logit_softcap": 0.0,
  "model.init_std": 0.0, "compute.unroll": 0, "objective.chunk": 0,
  "optim.clip": 0.0, "optim.spike_sigma": 0.0,
  "evaluate.heldout.every_steps": 0, "evaluate.heldout.batches": -1,
  "checkpoint.every_steps": 0, "checkpoint.keep_every_steps": 0,
}  # fmt: skip


def with_values(config: dict, values: dict) -> dict:
  config = json.loads(json.dumps(config))
  for key, value in values.items():
    *sections, last = key.split(".")
    section = config
    for name in sections:
      section = section[name]
    section[last] = value
  return config


def test_every_spelling_of_before_is_read_as_none(tmp_path, caplog):
  plain = run.settings.plain_of(skeleton())
  today = run.read(with_values(plain, dict.fromkeys(OLD)))
  spelling._told.clear()
  with caplog.at_level(logging.WARNING):
    assert run.read(with_values(plain, OLD)) == today
    assert run.read(with_values(plain, OLD)) == today
  told = [r.getMessage() for r in caplog.records if "as None" in r.getMessage()]
  assert len(told) == 1
  assert all(f"{key}={value!r}" in told[0] for key, value in OLD.items())
  # A work directory's record, from before there was a choice of libraries too.
  before = with_values(today, OLD | {"model.head_dim": 32})
  del before["compute"]["library"]
  (tmp_path / "config.json").write_text(json.dumps(before))
  assert run.config_in(tmp_path) == today


def test_the_skeleton_says_none_wherever_nothing_is_meant():
  plain = run.settings.plain_of(skeleton())
  assert spelling._modern(plain, "", []) == plain


def test_widths_follow_the_width_of_the_stream():
  config = skeleton()
  assert widths_of(config) == (4, 32, 384)  # those it always had
  config.model.dim = 512
  assert widths_of(config) == (4, 128, 1408)
  config.model.heads = 8
  assert widths_of(config) == (8, 64, 1408)
  config.model.gated = False
  assert widths_of(config) == (8, 64, 2048)
  config.model.mlp_dim, config.model.kv_heads = 700, 2
  assert widths_of(config) == (2, 64, 700)
  config.model.update(position="learned", position_length=None)
  assert run.read(config)["model"]["position_length"] == config.data.length


def widths_of(config) -> tuple:
  model = run.read(config)["model"]
  return model["kv_heads"], model["head_dim"], model["mlp_dim"]


@pytest.mark.parametrize("dim", [8, 100, 128, 768, 4096])
def test_an_mlp_that_follows_is_never_narrower_than_its_rule(dim):
  for gated, share in ((True, 8 / 3), (False, 4)):
    found = widths(
      dim=dim, heads=1, kv_heads=None, head_dim=None, mlp_dim=None, gated=gated
    )["mlp_dim"]
    assert share * dim - 1 < found < share * dim + 128


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(dim=512, mlp_dim=384), "model.mlp_dim=384 is narrower than"),
    (dict(dim=512, head_dim=32), "span 128 of model.dim=512"),
  ],
)
def test_widths_that_were_left_behind_are_told(changes, words, caplog):
  config = skeleton()
  config.model.update(changes)
  with caplog.at_level(logging.WARNING):
    run.read(config)
  assert words in caplog.text
  caplog.clear()
  run.read(skeleton())
  assert "narrower" not in caplog.text and "span" not in caplog.text
