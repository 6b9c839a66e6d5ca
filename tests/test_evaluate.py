"""The command: texts and tasks to a table and a JSON file."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import math
import threading
import types
from pathlib import Path

import jax
import pytest
from absl import flags
from flax import linen as nn
from rich.console import Console

from aigc_jax import evaluate, run, sharding
from aigc_jax.data import tokenizers
from aigc_jax.data.pairs import texts_fingerprint
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.evaluators.formats import Reference
from aigc_jax.evaluators.likelihood import Scorer
from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.presets import skeleton
from aigc_jax.run import score_files
from aigc_jax.sampling.words import Known
from tests import fresh, seq2seq
from tests.sweep import sweep
from tests.test_generate import loaded  # noqa: F401


@pytest.fixture(scope="module")
def scorer(loaded):  # noqa: F811
  return Scorer(
    loaded.model, loaded.params, loaded.tokenizer, length=16, batch=4
  )


def test_a_text_is_scored_by_the_byte(scorer):
  text = "the cat sat on the mat é\n" * 9
  found = evaluate.score_text(scorer, text)
  nats = -scorer.rolling(text).logprob
  size = len(text.encode())
  assert found["loss"].value == pytest.approx(nats / size)
  bits = nats / math.log(2)
  assert found["bits_per_byte"].value == pytest.approx(bits / size)
  assert found["loss"].items == size
  assert 0 < found["gzip_bits_per_byte"].value < 8


@pytest.mark.slow
def test_a_task_of_references_is_written_greedily(
  loaded,
  scorer,
  monkeypatch,
  capsys,  # noqa: F811
):
  class Flags:
    max_tokens, stop, batch, beams = 3, ["\n"], 2, 0

  monkeypatch.setattr(evaluate, "FLAGS", Flags)
  items = [Reference("ab", ("x",)), Reference("a" * 40, ("y", "z"))]
  found = evaluate.score_task(loaded, scorer, "references", items)
  assert found["exact_match"].items == 2


@pytest.mark.parametrize(
  "kind, pairs, told",
  [
    ("contrastive", 11, ": 8 at a time, 3 at the end"),
    ("contrastive", 16, ": 8 at a time"),
    ("contrastive", 5, ": 5 at a time"),
    ("tokens", 11, ""),
  ],
)
def test_of_how_many_pairs_a_loss_is_stands_beside_it(
  monkeypatch, kind, pairs, told
):
  class Set(list):
    batch, targets = 8, None

  class Loss:
    def __init__(self, *args, **keys):
      pass

    def measure(self, params, fixed):
      return {"loss": 1.0}

  objective = functools.partial(OBJECTIVES[kind])
  monkeypatch.setattr(run, "check_data", lambda config: None)
  monkeypatch.setattr(run, "scorer", lambda model, objective: None)
  monkeypatch.setattr(run, "objective_of", lambda config: objective)
  monkeypatch.setattr(run, "evaluations", lambda c: {"a": {"kind": "loss"}})
  monkeypatch.setattr(evaluate, "check_batch", lambda *_: None)
  monkeypatch.setattr(evaluate, "Loss", Loss)
  held = Set(range(pairs))
  monkeypatch.setattr(evaluate, "heldout_sets", lambda _: [("a", held)])
  parts = dict.fromkeys(("config", "model", "mesh", "params", "fixed"))
  found = evaluate.heldout(types.SimpleNamespace(**parts))["a"]["loss"]
  assert found.items == pairs
  assert found.signature.endswith(told) and bool(found.signature) == bool(told)


def test_scores_are_kept_beside_others_of_the_same_step(
  loaded,
  tmp_path,
  capsys,  # noqa: F811
):
  path = tmp_path / "deep" / "7.json"
  loss = Estimate(1.0, math.nan, 9)
  one = {"a": {"acc": Estimate(0.5, 0.1, 4), "loss": loss}}
  evaluate.save(path, loaded, one)
  evaluate.save(path, loaded, {"b": {"bleu": Estimate(3.0, 1.0, 2, "v:1")}})
  found = json.loads(path.read_text())
  assert found["scores"] == {
    "a": {
      "acc": {"value": 0.5, "error": 0.1, "items": 4},
      "loss": {"value": 1.0, "items": 9},
    },
    "b": {"bleu": dict(value=3.0, error=1.0, items=2, signature="v:1")},
  }
  later = dataclasses.replace(loaded, step=8)
  evaluate.save(path, later, one)
  assert set(json.loads(path.read_text())["scores"]) == {"a"}
  # A file that somebody else wrote is read, whatever it is said to be of.
  old = json.loads(path.read_text()) | {"model": "a\0b"}
  path.write_text(json.dumps(old))
  evaluate.save(path, later, {"b": {"bleu": Estimate(3.0, 1.0, 2, "v:1")}})
  assert set(json.loads(path.read_text())["scores"]) == {"b"}


def test_scores_of_other_parameters_in_the_same_place_are_not_kept(
  loaded,  # noqa: F811
  tmp_path,
):
  """As of a folder that was written anew, whose step is 0 each time."""
  path = tmp_path / "all.json"
  again = dataclasses.replace(loaded)
  other = jax.tree.map(lambda x: x + 1, loaded.params)
  other = dataclasses.replace(loaded, params=other)
  kept = []
  for name, model in dict(a=loaded, b=again, c=other).items():
    evaluate.save(path, model, {name: {"acc": Estimate(0.5, 0.1, 4)}})
    kept.append("".join(json.loads(path.read_text())["scores"]))
  assert kept == ["a", "ab", "c"]


def test_a_signature_is_shown_whole_however_narrow_the_table(loaded):  # noqa: F811
  how = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
  bleu, loss = Estimate(3.0, 1.0, 2, how), Estimate(1.0, math.nan, 9)
  for width in (30, 80):
    screen = Console(file=io.StringIO(), width=width)
    scores = {"a": {"bleu": bleu, "loss": loss}, "b": {"bleu": bleu}}
    evaluate.show(screen, loaded, scores)
    lines = screen.file.getvalue().splitlines()
    assert lines[-1] == f"bleu: {how}"
    assert "\n".join(lines).count("version") == 1


def test_scores_of_the_average_stand_in_a_file_of_their_own(loaded, tmp_path):
  loaded = dataclasses.replace(loaded, name=str(tmp_path), step=7)
  (tmp_path / "evaluate").mkdir()
  raw, average = (
    Path(evaluate.default_out(loaded, name)) for name in ("raw", "average")
  )
  assert (raw.name, average.name) == ("7.json", "7.average.json")
  one, other = ({"a": {"acc": Estimate(x, 0.1, 4)}} for x in (0.5, 0.75))
  evaluate.save(raw, loaded, one)
  evaluate.save(average, loaded, other, "average")
  # Nor are they mixed in a file that somebody names.
  evaluate.save(raw, loaded, {"b": other["a"]})
  assert set(json.loads(raw.read_text())["scores"]) == {"a", "b"}
  evaluate.save(raw, loaded, {"c": one["a"]}, "average")
  found = json.loads(raw.read_text())
  assert found["weights"] == "average" and set(found["scores"]) == {"c"}


def test_a_link_below_a_work_directory_named_by_its_home_is_not_followed(
  loaded,  # noqa: F811
  tmp_path,
  monkeypatch,
):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "evaluate").symlink_to(tmp_path / "elsewhere")
  loaded = dataclasses.replace(loaded, name="~/run", step=7)
  path = Path(evaluate.default_out(loaded))
  assert path == tmp_path / "run" / "evaluate" / "7.json"
  with pytest.raises(StorageFailure, match="is a link to"):
    evaluate.save(path, loaded, {"a": {"acc": Estimate(0.5, 0.1, 4)}})
  assert not list((tmp_path / "elsewhere").iterdir())


def test_scores_stay_however_the_run_is_called(
  loaded,  # noqa: F811
  tmp_path,
  monkeypatch,
):
  (tmp_path / "run").mkdir()
  monkeypatch.chdir(tmp_path)
  estimate = {"acc": Estimate(0.5, 0.1, 4)}
  names = ("run", "run/", "./run", str(tmp_path / "run"))
  for i, name in enumerate(names):
    own = dataclasses.replace(loaded, name=name, step=7)
    evaluate.save(Path(evaluate.default_out(own)), own, {f"s{i}": estimate})
    evaluate.save(tmp_path / "all.json", own, {f"s{i}": estimate})
  monkeypatch.chdir("/")  # and from elsewhere, as a name that was relative
  evaluate.save(Path(evaluate.default_out(own)), own, {"s4": estimate})
  for path, count in ((tmp_path / "run/evaluate/7.json", 5),
                      (tmp_path / "all.json", 4)):  # fmt: skip
    assert len(json.loads(path.read_text())["scores"]) == count
  other = dataclasses.replace(loaded, name=str(tmp_path / "other"), step=7)
  evaluate.save(tmp_path / "all.json", other, {"a": estimate})
  found = json.loads((tmp_path / "all.json").read_text())["scores"]
  assert set(found) == {"a"}  # of another model


def test_scores_that_two_commands_add_at_once_are_all_there(
  loaded,  # noqa: F811
  tmp_path,
  monkeypatch,
):
  estimate = {"acc": Estimate(0.5, 0.1, 4)}
  path = tmp_path / "x.json"
  kept, met = score_files._kept, threading.Barrier(2)

  def slowly(*args):
    found = kept(*args)
    with contextlib.suppress(threading.BrokenBarrierError):
      met.wait(0.2)  # whoever else has read the same by now
    return found

  evaluate.save(path, loaded, {"first": estimate})
  monkeypatch.setattr(score_files, "_kept", slowly)
  ends = [
    threading.Thread(target=evaluate.save, args=(path, loaded, {n: estimate}))
    for n in ("one", "two")
  ]
  for end in ends:
    end.start()
  for end in ends:
    end.join()
  found = json.loads(path.read_text())["scores"]
  assert set(found) == {"first", "one", "two"}
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_files_that_hold_no_scores_are_set_aside_one_beside_the_other(
  loaded,  # noqa: F811
  tmp_path,
):
  path = tmp_path / "x[1].json"
  for text in ("mine", "also mine"):
    path.write_text(text)
    evaluate.save(path, loaded, {"a": {"acc": Estimate(0.5, 0.1, 4)}})
  kept = {p.read_text() for p in tmp_path.glob("x[[]1].json.unreadable*")}
  assert kept == {"mine", "also mine"}


def test_a_score_of_texts_that_were_searched_for_says_by_what(monkeypatch):
  found = {"wer": Estimate(0.5, 0.1, 4, "as written"), "f": Estimate(1, 0, 4)}

  def signatures(beams, words=None):
    mine = types.SimpleNamespace(beams=beams, length_penalty=0.6)
    monkeypatch.setattr(evaluate, "FLAGS", mine)
    return [e.signature for e in evaluate.by_search(found, words).values()]

  assert signatures(0) == ["as written", ""]
  how = "beams=4, length_penalty=0.6"
  assert signatures(4) == [f"as written; {how}", how]
  one, other = (signatures(4, Known([text]))[1] for text in ("a b", "a c"))
  assert one != other and one.endswith("words_weight=0.5, words_reward=1.0")


def test_a_file_of_others_has_its_name_where_no_scores_can_be_written(
  loaded,  # noqa: F811
  tmp_path,
  monkeypatch,
):
  path = tmp_path / "x.json"
  path.write_text("mine")

  def full(*args):
    raise StorageFailure("No space left on device")

  monkeypatch.setattr(evaluate.files, "write_out", full)
  with pytest.raises(StorageFailure):
    evaluate.save(path, loaded, {"a": {"acc": Estimate(0.5, 0.1, 4)}})
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
    "x.json": "mine"
  }


def test_a_flag_is_read_or_refused(monkeypatch, tmp_path):
  """Of what is measured: held-out sets, texts, questions, what is written."""
  mine = flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", mine)
  for name in ("string", "integer", "list", "multi_string", "bool", "float"):
    define = getattr(flags, f"DEFINE_{name}")
    monkeypatch.setattr(
      flags, f"DEFINE_{name}",
      lambda *args, define=define, **kw: define(*args, flag_values=mine, **kw),
    )  # fmt: skip
  monkeypatch.setattr(evaluate, "FLAGS", mine)
  evaluate.define_flags()

  def check(*words, texts=(), tasks=()):
    mine.unparse_flags()
    for name in mine:
      mine[name].unparse()
    mine(["evaluate", *words])
    model = types.SimpleNamespace()
    evaluate.check_flags_read(model, dict.fromkeys(texts), dict(tasks))

  own, text = {}, {"texts": ["x"]}
  questions = {"tasks": {"x": ("piqa", [])}}
  written = {"tasks": {"x": ("references", [])}}
  for what, flag in (
    (own, "--length=8"), (own, "--batch=2"), (own, "--stop=x"),
    (own, "--beams=4"), (own, "--max_tokens=3"), (text, "--prepare"),
    (text, "--beams=4"), (questions, "--stop=x"), (questions, "--max_tokens=3"),
    (written, "--length_penalty=2.0"), (own, "--words=x"), (text, "--words=x"),
    (written, "--words_weight=2.0"),
  ):  # fmt: skip
    with pytest.raises(BadConfig, match=f"{flag.split('=')[0]} is of"):
      check(flag, **what)
  check("--prepare", **own)
  check("--length=8", "--batch=2", **text)
  check("--beams=2", "--length_penalty=2.0", "--stop=x", **written)


def test_flags_are_checked(tmp_path):
  assert evaluate.tasks_of(["a=x.jsonl", "b=y=z"]) == [
    ("a", "x.jsonl"), ("b", "y=z"),
  ]  # fmt: skip
  for wrong in (["a"], ["=x"], ["a=x", "a=y"]):
    with pytest.raises(BadConfig, match="--tasks"):
      evaluate.tasks_of(wrong)
  empty = tmp_path / "empty"
  empty.touch()
  for path in (str(empty), str(tmp_path / "none")):
    with pytest.raises(BadData, match="--text"):
      evaluate.text_of(path)


def test_the_length_is_that_of_the_model(loaded):  # noqa: F811
  def length(**config):
    return dataclasses.replace(loaded, config=config).length

  model = {"position_length": 0}
  assert length(model=model, data={"length": 33}) == 33
  assert length(model={"position_length": 9}) == 9
  assert length(model=model) == 0


def test_a_batch_that_could_never_fit_is_refused_before_it_is_made(loaded):  # noqa: F811
  config, dim = run.read(skeleton()), loaded.config["model"]["dim"]
  config["model"] |= {"dim": dim}
  for sizes in ({}, {"batch": 2**30}, {"length": 2**30}, {"batch": 10**6}):
    changed = config | {"data": config["data"] | sizes}
    one = dataclasses.replace(loaded, config=changed)
    if not sizes:
      evaluate.check_batch(one, 2**30)
      continue
    with pytest.raises(BadConfig, match="config.json: data: a batch of"):
      evaluate.check_batch(one, 2**30)
  need = 8 * 16 * 4 * (1 + dim)
  evaluate.check_room("x", (8, 16), dim, need)
  with pytest.raises(BadConfig, match="8 x 16 takes"):
    evaluate.check_room("x", (8, 16), dim, need - 1)


@pytest.mark.slow
@pytest.mark.parametrize("beams", sweep([0, 2], 2))
def test_targets_of_held_out_pairs_are_written_and_scored(
  beams, tmp_path, monkeypatch
):
  kwargs = seq2seq.STYLES["t5"] | dict(vocab=257, start_token=None)
  model = MODELS["encoder_decoder"](**kwargs)
  params = fresh.variables(model, model.example())["params"]
  rows = [{"en": f"text {i}", "fr": f"texte {i}"} for i in range(40)]
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source = dict(kind="json", path=str(path), source="en", target="fr")
  pairs = dict(
    kind="pairs", sources=[source], tokenizer="bytes", tokenizer_vocab=300,
    batch=2, source_length=16, target_length=5, packed=False, long="cut",
    shuffle=True, validation=0.2, root=str(tmp_path), skip_steps=[],
  )  # fmt: skip
  config = {"model": dict(kwargs, kind="encoder_decoder"), "data": pairs}
  mesh = sharding.mesh_of(jax.devices()[0])
  tokenizer = tokenizers.Bytes()
  loaded = run.Loaded(model, params, tokenizer, config, mesh, 7, "tiny")

  class Flag:
    present = False

  class Flags(dict):
    max_tokens, batch, beams, length_penalty = 64, 4, 0, 1.0

  known = Flags(max_tokens=Flag)
  known.beams = beams
  monkeypatch.setattr(evaluate, "FLAGS", known)
  held = run.data_of(config).texts("validation")
  texts = texts_fingerprint(held)
  found = evaluate.score_pairs(loaded, {"split": "validation"}, texts)
  assert found["exact_match"].items == len(held) > 0
  scored = importlib.util.find_spec("sacrebleu") is not None
  assert ({"bleu", "chrf"} <= found.keys()) == scored
  with pytest.raises(BadConfig, match="EncoderDecoder.*by itself"):
    evaluate.check_likelihood(model)
