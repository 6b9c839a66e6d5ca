"""Held-out text: of one's own, a share of the sources, or none at all."""

import io
import json
import re
import types

import pytest
import sentencepiece

from aigc_jax import evaluate, run
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.evaluators.loss import Loss
from aigc_jax.run import record
from aigc_jax.scaling import soup
from aigc_jax.trainer import changes
from configs import text_file
from tests import commands


@pytest.fixture
def texts(tmp_path):
  """(text to train on, text that is held out)."""
  paths = tmp_path / "train.txt", tmp_path / "held out.txt"
  for path, word in zip(paths, ("train", "held"), strict=True):
    path.write_text("".join(f"{word} line {i}\n" for i in range(200)))
  return paths


def config_of(texts, **changes):
  config = text_file.get_config()
  config.data.update(path=str(texts[0]), root=str(texts[0].parent / "root"))
  config.data.update(batch=4, length=16, **changes)
  return run.read(config)


def text_of(found) -> bytes:
  store = found.stores[0]
  return found.tokenizer.decode_bytes(store.read(0, store.tokens))


def test_held_out_text_of_ones_own_is_read_whole_and_nothing_else_is(texts):
  config = config_of(texts, validation_path=str(texts[1]))
  run.check_evaluators(config)
  stream = run.open_stream(config, say=lambda text: None)
  assert text_of(stream) == texts[0].read_bytes()
  for tokenizer in (None, stream.tokenizer):
    found = run.open_eval(
      config, "validation", tokenizer=tokenizer, say=lambda text: None
    )
    assert text_of(found) == texts[1].read_bytes()
    assert found.counts["bytes"] == texts[1].stat().st_size
    assert {"gzip", "xz"} == found.yardsticks.keys()


@pytest.mark.parametrize("own", [True, False])
def test_held_out_text_that_is_not_there_is_told_before_anything_is_prepared(
  texts, own
):
  gone = str(texts[0].parent / "gone.txt")
  config = config_of(texts, validation_path=gone if own else None)
  key = "data.validation_path"
  if not own:
    source = dict(kind="text", path=gone, field="text", weight=1.0)
    data = dict(split="all", sources=[source])
    config["evaluate"]["other"] = config["evaluate"]["heldout"] | dict(
      data=data
    )
    key = "evaluate.other.data.sources[0].path"
  with pytest.raises(BadData, match=rf"{re.escape(key)}='.*gone.txt': no such"):
    run.check_evaluators(config)


def test_what_was_prepared_needs_its_text_no_more(texts):
  config = config_of(texts, validation_path=str(texts[1]))
  made = run.open_eval(config, "validation", say=lambda text: None)
  texts[1].unlink()
  run.check_evaluators(config, prepared=True)
  found = run.find_eval(
    config, "validation", tokenizer=made.tokenizer,
    fingerprints=[made.fingerprint],
  )  # fmt: skip
  assert found.fingerprint == made.fingerprint


def test_text_of_the_same_tokens_is_not_taken_for_text_of_another_length(
  texts, tmp_path
):
  """Bits per byte are of the text, and a tokenizer may make it shorter."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["train held line 0123456789"] * 9),
    model_writer=model, vocab_size=40, minloglevel=2, hard_vocab_limit=False,
  )  # fmt: skip
  (tmp_path / "x.model").write_bytes(model.getvalue())
  path = str(tmp_path / "x.model")
  config = config_of(
    texts, validation_path=str(texts[1]), tokenizer=path, tokenizer_vocab=40
  )
  made = []
  for spaces in (" ", "  "):
    texts[1].write_text(f"held{spaces}line 7 " * 50)
    made.append(run.open_eval(config, "validation", say=lambda text: None))
  assert made[0].fingerprint == made[1].fingerprint
  assert made[0].counts["bytes"] != made[1].counts["bytes"]
  for one in made:
    known = dict(
      fingerprints=[one.fingerprint], texts=[one.texts_fingerprint],
      tokenizer=one.tokenizer,
    )  # fmt: skip
    found = run.find_eval(config, "validation", **known)
    assert found.counts == one.counts
    known["texts"] = ["0" * 64]
    assert run.find_eval(config, "validation", **known) is None
    known["texts"] = ()  # of a run from before they were noted
    assert run.find_eval(config, "validation", **known) is not None


def pairs_in(folder, end: str):
  """The config of a run on pairs, one of which has more text than is read."""
  row = {"source": "a b", "target": "c" * 99 + end}
  (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
  source = dict(kind="json", path=str(folder / "pairs.jsonl"))
  source |= dict(source="source", target="target")
  config = run.read(run.configured("configs/transformer.py:base", []))
  config["data"] |= dict(sources=[source], tokenizer="bytes", batch=1)
  config["data"] |= dict(validation=0.0, long="cut", target_length=8)
  return config


def test_text_beyond_what_is_read_is_noted_and_compared_where_scores_read_it(
  tmp_path,
):
  config = pairs_in(tmp_path, "1")
  config["evaluate"] = {"heldout": {"kind": "loss", "data": {"split": "all"}}}

  def prints():
    held = run.open_eval(config, "all", say=lambda text: None)
    loss = Loss(lambda *_: {}, held, None, name="heldout")
    stream = types.SimpleNamespace(fingerprint="data")
    return record.fingerprints(stream, {"heldout": (0, loss)})

  before, entries = prints(), record.entries(config)
  meta = {"heldout_fingerprints": before, "heldout_entries": entries}
  pairs_in(tmp_path, "2")
  now = prints()
  assert now["evaluate.heldout"] == before["evaluate.heldout"]
  with pytest.raises(BadConfig, match="evaluate.heldout.texts: "):
    changes.data_changes(meta, now, entries, False, "step 3")
  with pytest.raises(BadData, match="changed while they were read"):
    evaluate.score_pairs(
      types.SimpleNamespace(config=config), {"split": "all"},
      before["evaluate.heldout.texts"],
    )  # fmt: skip
  del meta["heldout_fingerprints"]["evaluate.heldout.texts"]
  assert not changes.data_changes(meta, now, entries, False, "step 3")


def test_a_store_that_is_damaged_is_named_where_its_set_is_missed(
  texts, tmp_path, monkeypatch
):
  config = config_of(texts, validation_path=str(texts[1]))
  made = run.open_eval(config, "validation", say=lambda text: None)
  folder = made.stores[0].folder
  (folder / "manifest.json").write_text("{")
  prints = {"heldout": [made.fingerprint]}
  monkeypatch.setattr(run, "heldout_prints", lambda *_: prints)
  loaded = types.SimpleNamespace(
    config=config, tokenizer=made.tokenizer, name="a run", step=3
  )
  said = []
  assert list(soup._held_out(loaded, said.append)) == []
  (line,) = said
  assert line.startswith("not measured: evaluate.heldout: ")
  assert f"{folder}/manifest.json" in line
  assert line.endswith("evaluate --workdir='a run' --prepare")


def test_a_tokenizer_is_never_trained_on_held_out_text(texts):
  texts[0].write_text("only these words are read for pieces\n" * 400)
  config = config_of(
    texts, validation_path=str(texts[1]), tokenizer="sentencepiece",
    tokenizer_vocab=300,
  )  # fmt: skip
  config["model"]["vocab"] = 300
  found = run.open_eval(config, "validation", say=lambda text: None)
  stream = run.open_stream(config, say=lambda text: None)
  assert found.tokenizer.fingerprint == stream.tokenizer.fingerprint


def test_without_held_out_text_its_evaluation_is_left_out(texts):
  config = config_of(texts, validation=0)
  assert run.evaluations(config) == {}
  assert run.evaluations(config_of(texts)).keys() == {"heldout"}
  own = config_of(texts, validation=0, validation_path=str(texts[1]))
  assert run.evaluations(own).keys() == {"heldout"}
  # What asks for other data, or another split, is never left out.
  for data in ({"split": "train"}, {"split": "all"}):
    config["evaluate"]["heldout"]["data"] = data
    run.check_evaluators(config)
    assert run.evaluations(config).keys() == {"heldout"}


def test_a_config_of_before_there_was_such_a_key_is_read(texts):
  config = config_of(texts)
  del config["data"]["validation_path"]
  assert run.read(config)["data"]["validation_path"] is None


def test_a_work_directory_is_neither_its_text_nor_a_bucket(texts):
  config = config_of(texts)
  config["data"]["path"] = str(texts[0].parent)
  with pytest.raises(BadConfig, match="the folder of the text itself") as told:
    run.check_workdir(config, f"{texts[0].parent}/.")
  advice = str(told.value).partition("use --workdir=")[2]
  run.check_workdir(config, advice)
  for check in (lambda where: run.check_workdir(config, where), run.load):
    with pytest.raises(BadConfig, match="--workdir=gs://b/run: only files on"):
      check("gs://b/run")


def command(name, *flags):
  done = commands.run(f"aigc_jax.{name}", *flags)
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


@pytest.mark.slow
def test_both_ways_as_typed_at_a_terminal(texts, tmp_path):
  flags = [
    "--config=configs/text_file.py", f"--config.data.path={texts[0]}",
    f"--config.data.root={tmp_path}/root", "--config.steps=2",
    "--config.data.batch=8", "--config.data.length=32",
  ]  # fmt: skip
  without = command(
    "train", *flags, "--config.data.validation=0", f"--workdir={tmp_path}/a"
  )
  assert "evaluate.heldout is left out: data.validation=0" in without
  assert "eval/" not in without
  flags.append(f"--config.data.validation_path={texts[1]}")
  said = command("prepare", *flags)
  assert "held out (all)" in said and "train (train)" in said
  own = command("train", *flags, f"--workdir={tmp_path}/b")
  assert "eval/heldout/bits_per_byte" in own
  assert "preparing" not in own
  for text in texts:  # what is evaluated needs no text
    text.unlink()
  again = command("evaluate", f"--workdir={tmp_path}/b")
  assert "bits_per_byte" in again
  last = json.loads((tmp_path / "b" / "result.json").read_text())
  found = json.loads((tmp_path / "b" / "evaluate" / "2.json").read_text())
  loss = found["scores"]["heldout"]["loss"]["value"]
  assert loss == pytest.approx(last["eval/heldout/loss"], rel=1e-6)


def test_how_few_tokens_are_held_out_is_told_where_they_say_little(texts):
  def told(**changes):
    lines = []
    run.open_eval(config_of(texts, **changes), "validation", say=lines.append)
    return [line for line in lines if "mostly chance" in line]

  (line,) = told(validation=0.01)
  assert re.search(r"'train': \d\d tokens held out", line)
  assert not told(validation=0.5)


def test_training_data_that_is_not_there_is_told_by_its_key(texts):
  for path in texts:
    path.unlink()
  with pytest.raises(BadData, match=r"data\.path='.*train.txt': no such file"):
    run.open_stream(config_of(texts))
  config = config_of(texts, path=None)
  source = dict(kind="corpus", name="stdlib", split="train")
  config["data"]["sources"] = [source, dict(kind="text", path=str(texts[1]))]
  with pytest.raises(BadData, match=r"data\.sources\[1\]\.path='.*held out"):
    run.open_stream(config)
