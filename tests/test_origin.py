"""init_from: whatever makes the weights mean something else is refused."""

import json
import shutil

import pytest

from aigc_jax import hf, run
from aigc_jax.data import load_tokenizer, save, sentences
from aigc_jax.errors import BadConfig
from aigc_jax.hf.settings import LATER
from aigc_jax.run.alike import differences
from aigc_jax.run.origin import check_frozen_origins
from tests import commands, tiny

CHANGES = {
  "rotary_base": 5e5, "norm_eps": 1e-6, "activation": "gelu", "vocab": 41,
  "norm_offset": 1.0, "windows": (3,), "logit_softcap": 30.0, "dim": 48,
  "attention_softcap": 9.0, "embed_scale": True, "attention_scale": 0.7,
  "rotary_scaling": dict(kind="linear", factor=2.0), "rotary_dim": 4,
  "embed_multiplier": 2.0, "residual_multiplier": 0.5, "pre_norm": False,
  "logit_multiplier": 0.5, "rotary_layers": (True, False), "parallel": True,
}  # fmt: skip
SAME = {
  "dropout": 0.1, "dtype": "bfloat16", "remat": "full", "unroll": 0,
  "kernel": "chunked", "init_std": 0.3, "position_length": 99,
  "windows": (None,), "rotary_local_base": 3.0, "rotary_dim": 8,
  "rotary_layers": (True,), "logit_multiplier": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("origin")
  hf.write(
    path, tiny.params_of("llama"), tiny.LLAMA,
    family=hf.choose_family(tiny.LLAMA), dtype="float32", shard_bytes=10**9,
    special=dict(bos_token_id=0, eos_token_id=0),
  )  # fmt: skip
  return path


def config(folder, tokenizer="bytes", **changes):
  model = dict(kind="decoder") | tiny.LLAMA | changes
  data = dict(tokenizer=tokenizer)
  return dict(init_from=f"hf:{folder}", model=model, data=data)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_changes_the_decoder_is_refused_with_its_remedy(folder, key):
  with pytest.raises(BadConfig) as error:
    run.check_origin(config(folder, **{key: CHANGES[key]}))
  assert f"model.{key}={CHANGES[key]!r}" in str(error.value)
  assert f"config.model.{key}" in str(error.value).split(": ", 2)[-1]
  (line,) = (x for x in str(error.value).split("\n") if "in one line" in x)
  assert f" --config.model.{key}=" in line


def write_config(folder, model):
  config = dict(
    model=model, data=dict(length=16, batch=4), objective={}, evaluate={},
    init_from=None,
  )  # fmt: skip
  (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def workdir(tmp_path):
  """What a run leaves of itself, but for its checkpoints."""
  model = dict(kind="decoder") | tiny.LLAMA
  write_config(tmp_path, model)
  save(load_tokenizer("bytes"), tmp_path / "tokenizer")
  return tmp_path


def continued(workdir, **changes):
  return config(workdir, **changes) | dict(init_from=str(workdir))


@pytest.mark.parametrize("key", CHANGES)
def test_another_run_is_no_origin_for_another_decoder(workdir, key):
  with pytest.raises(BadConfig) as error:
    run.check_origin(continued(workdir, **{key: CHANGES[key]}))
  assert f"init_from={workdir}" in str(error.value)
  assert f"model.{key}={CHANGES[key]!r}" in str(error.value)
  assert "data.tokenizer" not in str(error.value), "it is the same"
  assert f"config.model.{key}" in str(error.value).split(": ", 2)[-1]


# Of CHANGES, what parameters have the shape or the place of.
SHAPES = ("vocab", "dim", "pre_norm")


@pytest.mark.parametrize("of", ["folder", "run"])
@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_is_named_may_change_unless_shapes_follow_it(
  folder, workdir, of, key
):
  make, place = {"folder": (config, folder), "run": (continued, workdir)}[of]
  ours, name = make(place, **{key: CHANGES[key]}), f"model.{key}"
  if key in SHAPES:
    with pytest.raises(BadConfig, match=f"{name} cannot be changed") as error:
      run.check_origin(ours, allowed=[name])
    assert "--allow_change" not in str(error.value)
    return
  (change,) = run.check_origin(ours, allowed=[name, "optim.b1"])
  assert (change.key, change.new) == (name, CHANGES[key])
  assert change.old != change.new
  with pytest.raises(BadConfig, match=f"on purpose, --allow_change={name}"):
    run.check_origin(ours, allowed=["optim.b1"])


def test_of_several_changes_all_are_named(workdir):
  ours = continued(workdir, rotary_base=5e5, windows=(3,), dim=48)
  with pytest.raises(BadConfig) as error:
    run.check_origin(ours, allowed=["model.rotary_base"])
  assert "--allow_change=model.rotary_base,model.windows" in str(error.value)
  assert "model.dim cannot be changed" in str(error.value)
  ours["model"]["dim"] = tiny.LLAMA["dim"]
  named = ["model.windows", "model.rotary_base"]
  assert len(run.check_origin(ours, allowed=named)) == 2


@pytest.mark.parametrize("key", SAME)
def test_another_run_may_have_been_computed_otherwise(workdir, key):
  run.check_origin(continued(workdir, **{key: SAME[key]}))


def test_another_kind_of_model_is_refused_by_its_kind(workdir):
  with pytest.raises(BadConfig, match="--config.model.kind=decoder") as error:
    run.check_origin(continued(workdir, kind="encoder", norm_eps=1.0))
  assert "norm_eps" not in str(error.value)
  encoder = dict(kind="encoder", layers=2, dropout=0.1)
  write_config(workdir, encoder)
  again = dict(init_from=str(workdir), model=encoder | dict(dropout=0.0))
  run.check_origin(again)
  again["model"]["layers"] = 3
  with pytest.raises(BadConfig, match="--config.model.layers=2"):
    run.check_origin(again)


def test_the_tokenizer_is_that_of_the_run(workdir):
  run.check_origin(continued(workdir), load_tokenizer("bytes"))
  text = "def f(a, aa, ab):\n    return a == aa  # the word\n" * 9
  other = sentences.train([text], 310, "other")
  with pytest.raises(BadConfig) as error:
    run.check_origin(continued(workdir, tokenizer="other"), other)
  remedy = str(error.value).rpartition("--config.data.tokenizer=")[2]
  assert load_tokenizer(remedy).kind == "bytes"


def taught(workdir, tokenizer="bytes", **data):
  """A config whose part is the frozen model of a run."""
  parts = dict(teacher=dict(kind="decoder") | tiny.LLAMA)
  return dict(
    model=dict(kind="roles", parts=parts), frozen=dict(teacher=str(workdir)),
    data=dict(tokenizer=tokenizer, **data), init_from=None,
  )  # fmt: skip


def test_a_frozen_part_is_given_the_tokens_that_it_was_trained_on(workdir):
  check_frozen_origins(taught(workdir))
  check_frozen_origins(taught(workdir), load_tokenizer("bytes"))
  # What is to be trained is not known before it is.
  check_frozen_origins(taught(workdir, "sentencepiece"))
  text = "def f(a, aa, ab):\n    return a == aa  # the word\n" * 9
  other = sentences.train([text], 310, "other")
  with pytest.raises(BadConfig, match="frozen.teacher") as error:
    check_frozen_origins(taught(workdir, "sentencepiece"), other)
  remedy = str(error.value).rpartition("--config.data.tokenizer=")[2]
  assert load_tokenizer(remedy).kind == "bytes"
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["start"] = 7
  (workdir / "config.json").write_text(json.dumps(config))
  check_frozen_origins(taught(workdir, start=7))
  with pytest.raises(BadConfig, match="--config.data.start=7"):
    check_frozen_origins(taught(workdir, start=None))


@pytest.mark.parametrize("key", SAME)
def test_a_key_that_does_not_change_it_is_free(folder, key):
  run.check_origin(config(folder, **{key: SAME[key]}))


def test_a_difference_of_one_key_is_told_as_one():
  assert len(differences(tiny.LLAMA | dict(layers=4), tiny.LLAMA)) == 1
  assert len(differences(tiny.LLAMA | dict(windows=(0,)), tiny.LLAMA)) == 0


def test_a_key_that_came_later_is_told_where_one_side_is_from_before():
  """tiny.LLAMA has none of them, as work directories of before have none."""
  later = dict(parallel=True, pre_norm=False, logit_multiplier=0.5)
  for key, value in later.items():
    for pair in (tiny.LLAMA, tiny.LLAMA | {key: value}):
      assert not differences(tiny.LLAMA | LATER, tiny.LLAMA)
      other = tiny.LLAMA if key in pair else tiny.LLAMA | {key: value}
      (line,) = differences(pair, other)
      assert line.startswith(f"model.{key}=")


def test_a_width_of_heads_left_to_the_others_is_the_same():
  own = tiny.LLAMA | dict(head_dim=4)
  assert not differences(own | dict(head_dim=0), own)


def test_the_tokenizer_is_that_of_the_folder_where_it_has_one(folder, tmp_path):
  tokenizers = pytest.importorskip("tokenizers")
  run.check_origin(config(folder), load_tokenizer("bytes"))
  whole = tmp_path / "whole"
  shutil.copytree(folder, whole)
  words = {"a": 0, "</s>": 1}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
  made.add_special_tokens(["</s>"])
  made.save(str(whole / "tokenizer.json"))
  run.check_origin(config(whole), load_tokenizer(f"hf:{whole}"))
  with pytest.raises(BadConfig, match=f"data.tokenizer=hf:{whole}"):
    run.check_origin(config(whole), load_tokenizer("bytes"))


def test_what_follows_from_other_values_is_not_listed_as_a_difference():
  ours = dict(kind="decoder") | tiny.LLAMA | dict(head_dim=0, dim=48)
  theirs = dict(kind="decoder") | tiny.LLAMA | dict(head_dim=0)
  lines = differences(ours, theirs)
  assert [line.split("=")[0] for line in lines] == ["model.dim"]
  assert not differences(dict(theirs, windows=[3]), dict(theirs, windows=(3,)))


@pytest.mark.slow
def test_a_run_goes_on_from_another_with_a_key_changed_on_purpose(tmp_path):
  lines = "".join(f"line {i} of a text to learn\n" for i in range(400))
  (tmp_path / "text.txt").write_text(lines)

  def train(*flags):
    return commands.run(
      "aigc_jax.train", "--config=configs/text_file.py",
      f"--config.data.path={tmp_path}/text.txt", "--config.steps=2",
      f"--config.data.root={tmp_path}/stores", "--config.data.batch=4",
      "--config.data.length=16", "--config.model.layers=1",
      "--config.model.dim=16", "--config.model.heads=2",
      "--config.model.kv_heads=2", "--config.optim.warmup_steps=1", *flags,
    )  # fmt: skip

  first = train(f"--workdir={tmp_path}/a")
  assert first.returncode == 0, first.stderr
  line = [
    f"--workdir={tmp_path}/b", f"--config.init_from={tmp_path}/a",
    "--config.model.rotary_base=5e5",
  ]  # fmt: skip
  refused = train(*line)
  assert refused.returncode == BadConfig.code
  way = "--allow_change=model.rotary_base"
  assert f"on purpose, {way}" in refused.stderr
  done = train(*line, way)
  assert done.returncode == 0, done.stderr
  assert f"parameters from {tmp_path}/a, step 2" in done.stdout
  told = [json.loads(x) for x in open(tmp_path / "b" / "events.jsonl")]
  (change,) = [row for row in told if row["event"] == "origin_change"]
  assert (change["old"], change["new"]) == (1e4, 5e5)
  assert "is finished" in train(*line).stdout  # the key is this run's own now


def test_a_line_that_trains_on_names_the_tokenizer_too(workdir):
  ours = continued(workdir, rotary_base=5e5) | dict(
    data=dict(tokenizer="sentencepiece")
  )
  with pytest.raises(BadConfig, match="one line: .*--config.data.tokenizer=.*"):
    run.check_origin(ours)
