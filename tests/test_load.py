"""What a run's parameters are read as is what they were trained as."""

import json

import pytest
from absl import logging

from aigc_jax import export, hf, run
from aigc_jax.data import load_tokenizer, save, sentences
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.presets import vit
from aigc_jax.run import drawing
from aigc_jax.run.origin import check_resumed, check_saved, tokenizer_in
from tests import tiny
from tests.scaling.test_soup import write_run

MODEL = json.loads(json.dumps(dict(kind="decoder") | tiny.LLAMA))
CONFIG = {"model": MODEL, "seed": 0}
OTHER = {
  "rotary_base": 5e5, "norm_eps": 1e-6, "activation": "gelu",
  "windows": [3], "logit_softcap": 30.0, "embed_scale": True,
  "rotary_scaling": {"kind": "linear", "factor": 2.0},
}  # fmt: skip
COMPUTED = {"kernel": "chunked", "remat": "full", "unroll": 0, "dropout": 0.5}


@pytest.fixture(scope="module")
def tokenizer():
  return load_tokenizer("bytes")


def saved(tokenizer, **changes) -> dict:
  meta = {"model": MODEL, "tokenizer_fingerprint": tokenizer.fingerprint}
  return {"step": 12, "meta": meta | changes}


@pytest.mark.parametrize("key", OTHER)
def test_a_config_that_was_edited_is_refused_by_its_key(tokenizer, key):
  edited = CONFIG | {"model": MODEL | {key: OTHER[key]}}
  with pytest.raises(BadConfig, match=f"step 12(.|\n)*model.{key}="):
    check_saved("DIR", edited, tokenizer, saved(tokenizer))
  with pytest.raises(BadConfig, match=f"--allow_change=model.{key}"):
    check_resumed(edited["model"], [], saved(tokenizer))
  check_resumed(edited["model"], [f"model.{key}", "seed"], saved(tokenizer))


@pytest.mark.parametrize("key", COMPUTED)
def test_how_a_model_is_computed_is_free(tokenizer, key):
  edited = CONFIG | {"model": MODEL | {key: COMPUTED[key]}}
  check_saved("DIR", edited, tokenizer, saved(tokenizer))
  check_resumed(edited["model"], [], saved(tokenizer))


def test_what_a_folder_says_of_its_model_beside_parameters_is_known(tmp_path):
  """A judge with other activations may have the same parameters."""
  found = []
  for said in (
    dict(hidden_act="gelu", transformers_version="4"),
    dict(hidden_act="gelu", transformers_version="5"),
    dict(hidden_act="relu", transformers_version="5"),
  ):
    (tmp_path / "config.json").write_text(json.dumps(said))
    loaded = run.Loaded(None, None, None, {}, None, 0, f"hf:{tmp_path}")
    found.append(loaded.said_of_itself)
  assert found[0] == found[1] != found[2]
  own = run.Loaded(None, None, None, {}, None, 4, str(tmp_path))
  assert own.said_of_itself == ""


def test_the_tokenizer_of_another_run_is_refused(tokenizer):
  text = "def f(a, aa, ab):\n    return a == aa  # the word\n" * 9
  other = sentences.train([text], 310, "other")
  with pytest.raises(BadConfig, match="DIR/tokenizer is not the tokenizer"):
    check_saved("DIR", CONFIG, other, saved(tokenizer))
  check_saved("DIR", CONFIG, None, saved(tokenizer))  # of images, say


def test_an_earlier_checkpoint_is_told_where_its_config_changed(
  tokenizer, caplog, tmp_path
):
  older = saved(tokenizer, config_sha256=run.fingerprint(CONFIG))
  del older["meta"]["model"]
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  check_saved(tmp_path, CONFIG, tokenizer, older)
  assert not caplog.records
  (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"seed": 1}))
  check_saved(tmp_path, CONFIG, tokenizer, older)
  assert "before checkpoints held their model" in caplog.text


def test_a_config_that_was_edited_beside_its_model_is_told(
  tokenizer, caplog, tmp_path
):
  content = saved(tokenizer, config_sha256=run.fingerprint(CONFIG))
  edited = CONFIG | {"seed": 1}
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  check_saved(tmp_path, CONFIG, tokenizer, content)
  (tmp_path / "config.json").write_text(json.dumps(edited))
  (tmp_path / "config.before-7.2.json").write_text(json.dumps(CONFIG))
  (tmp_path / "config.before-9.json").write_text("no config")
  check_saved(tmp_path, edited, tokenizer, content)  # it was changed
  assert not caplog.records
  (tmp_path / "config.before-7.2.json").unlink()
  check_saved(tmp_path, edited, tokenizer, content)
  assert "is not the one that step 12 was saved with" in caplog.text


@pytest.mark.parametrize(
  "change",
  [{"mean": None}, {"std": [0.0] * 3}, {"image_size": "x"}, {"crop": 0}],
)
def test_pixels_of_a_config_that_is_none_are_refused(change):
  config = vit.get_config("s16,folder")
  config.data.sources[0]["path"] = "pets"
  config = run.read(config)
  drawing.check_own(config)
  own = {"data": config["data"] | change}
  with pytest.raises(BadConfig):
    drawing.check_own(own)
  with pytest.raises(BadConfig):
    export.image_files(own["data"], hf.FAMILIES["vit"])


def test_the_tokenizer_of_a_run_lies_in_its_work_directory(tokenizer, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  assert tokenizer_in(workdir, missing=True) is None
  save(tokenizer, tmp_path / "elsewhere")
  (workdir / "tokenizer").symlink_to(tmp_path / "elsewhere")
  for missing in (False, True):
    with pytest.raises(BadData, match="tokenizer is a link to .*elsewhere"):
      tokenizer_in(workdir, missing)
  (workdir / "tokenizer").unlink()
  save(tokenizer, workdir / "tokenizer")
  assert tokenizer_in(workdir).fingerprint == tokenizer.fingerprint


def test_an_empty_name_is_no_folder_of_hugging_face():
  with pytest.raises(BadConfig, match="names no folder: expected hf:FOLDER"):
    run.load("hf:")


@pytest.mark.parametrize("key", ["model_type", "_class_name"])
def test_a_folder_of_hugging_face_that_lacks_its_word_is_told_so(tmp_path, key):
  (tmp_path / "config.json").write_text(json.dumps({key: "llama"}))
  with pytest.raises(BadConfig, match=f"write it as hf:{tmp_path}"):
    run.load(str(tmp_path))


@pytest.mark.slow
def test_an_average_that_reaches_back_to_the_start_is_told(
  tmp_path, monkeypatch
):
  write_run(tmp_path / "run", 0, steps=(8, 10), average=0.9)
  said = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *args: said.append(text % args)
  )
  for step, weights, told in (
    (8, "average", True), (10, "average", False), (8, "raw", False),
  ):  # fmt: skip
    said.clear()
    run.load(str(tmp_path / "run"), step=step, weights=weights)
    assert bool(said) == told
    assert not told or "reaches back about 10 steps" in said[0]
    assert not told or "--weights=raw" in said[0]
