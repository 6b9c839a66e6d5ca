"""report table: arms against a baseline, or the reason why not."""

import json

import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import comparable, pictures, results, statistics, table
from aigc_jax.scaling.ablation import ablation
from aigc_jax.scaling.arms import arms_of
from aigc_jax.scaling.compare import compare
from aigc_jax.scaling.runs import open_runs
from aigc_jax.trainer.changes import Change
from tests.scaling.made import made_run
from tests.scaling.test_statistics import THREE

LOSS = "eval/heldout/loss"
BITS = "eval/heldout/bits_per_byte"


def arm(folder, name, values, *, config=None, first_seed=0, **more):
  """A run for each value of the last held-out loss."""
  for i, value in enumerate(values):
    final = {LOSS: value} | more.get("final", {})
    made_run(
      folder / f"{name}{i}",
      seed=first_seed + i,
      config={"data.name": name} | (config or {}),
      **more | {"final": final},
    )


def made(folder, by=("data.name",), **options):
  arms = arms_of(open_runs([str(folder)]), by)
  options.setdefault("metric", LOSS)
  return ablation(arms, **options)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """The arms and seeds of the worked example, as work directories."""
  folder = tmp_path_factory.mktemp("three")
  arm(folder, "base", THREE["inputs"]["baseline"])
  for name, values in THREE["inputs"]["variants"].items():
    arm(folder, name, values)
  return folder


def test_a_table_of_work_directories_equals_the_worked_example(three):
  found = table.as_json(made(three, baseline="name=base", margin=0.003))
  assert found["at"] == {"axis": "step", "value": 40.0}
  arms = {a["name"].removeprefix("name="): a for a in found["arms"]}
  wanted = THREE["outputs"]["variants"]
  adjusted = THREE["outputs"]["multiple_paired"]
  for i, name in enumerate(wanted):
    versus = arms[name]["versus_baseline"]
    assert versus["method"] == "paired"
    for key in ("mean_diff", "t", "p_two_sided", "ci95", "corr", "cohen_dz"):
      assert versus["paired"][key] == pytest.approx(
        wanted[name]["paired"][key], rel=1e-6
      )
    for key in ("df", "p_two_sided", "permutation_n"):
      assert versus["welch"][key] == pytest.approx(wanted[name]["welch"][key])
    assert versus["holm"] == pytest.approx(adjusted["holm"]["adjusted"][i])
    assert versus["bh"] == pytest.approx(adjusted["fdr_bh"]["adjusted"][i])
  verdicts = {k: a["versus_baseline"]["verdict"] for k, a in arms.items()
              if k != "base"}  # fmt: skip
  assert verdicts == {
    "qk_norm": "better", "swiglu": "better", "z_loss": "equivalent within 0.003"
  }  # fmt: skip
  json.dumps(found, allow_nan=False)


def test_every_form_of_the_table_says_the_same(three, tmp_path):
  found = made(three, baseline="name=base")
  text, page = table.markdown(found), table.as_html(found)
  for word in ("swiglu", "-0.018320", "3.21472", "better", "5 pairs"):
    assert word in text and word in page
  lines = [line for line in text.splitlines() if line.startswith("|")]
  assert len({line.count("|") for line in lines[:6]}) == 1
  out = table.forest(found, tmp_path / "x.png")
  assert out.read_bytes().startswith(b"\x89PNG")


def test_other_batches_or_other_seeds_are_no_pairs(tmp_path):
  arm(tmp_path, "base", [3.0, 3.1, 3.2])
  arm(tmp_path, "batches", [2.9, 3.0, 3.2], batches=77)
  arm(tmp_path, "seeds", [2.9, 3.0, 3.2], first_seed=10)
  found = made(tmp_path, baseline="name=base")
  by_name = {r.arm.name: r.versus for r in found.results}
  assert by_name["name=batches"].method == "Welch"
  assert "other batches" in by_name["name=batches"].why
  assert by_name["name=seeds"].method == "Welch"
  assert "not the same" in by_name["name=seeds"].why
  wanted = statistics.welch([2.9, 3.0, 3.2], [3.0, 3.1, 3.2])
  assert by_name["name=seeds"].welch == wanted


def test_of_one_seed_nothing_can_be_said(tmp_path):
  arm(tmp_path, "base", [3.0])
  arm(tmp_path, "other", [2.0])
  found = made(tmp_path)
  versus = found.results[1].versus
  assert versus.method == "none" and versus.p is None
  assert versus.difference is None
  assert "nothing can be said" in table.markdown(found)
  assert found.results[0].summary.sd is None


def test_diverged_and_unfinished_runs_are_shown_and_do_not_count(tmp_path):
  arm(tmp_path, "base", [3.0, 3.1, 3.2])
  arm(tmp_path, "arm", [2.8, 2.9])
  nan = lambda step: None if step > 15 else 5.0 - 0.1 * step  # noqa: E731
  grown = lambda step: 2.0 + step  # noqa: E731
  made_run(tmp_path / "arm-nan", seed=2, config={"data.name": "arm"}, loss=nan)
  made_run(tmp_path / "arm-up", seed=3, config={"data.name": "arm"}, loss=grown)
  made_run(
    tmp_path / "arm-short", seed=4, steps=20, finished=False,
    config={"data.name": "arm", "steps": 40},
  )  # fmt: skip
  found = made(tmp_path, baseline="name=base")
  result = found.results[0]
  assert result.arm.name == "name=arm" and result.summary.n == 2
  text = table.markdown(found)
  assert "2 diverged" in text and "1 unfinished" in text
  for name in ("arm-nan", "arm-up", "arm-short"):
    assert any(n.startswith(f"{name} ") for n in found.notes)
  assert "its mean flatters it" in text


def test_a_run_of_a_total_is_finished_when_it_left_a_result(tmp_path):
  for name, finished in (("whole", True), ("short", False)):
    made_run(tmp_path / name, finished=finished, config={"steps": None})
  states = {r.name: r.status for r in open_runs([str(tmp_path)])}
  assert states == {"whole": "finished", "short": "unfinished"}


def test_a_seed_twice_in_an_arm_is_refused_by_the_names_of_both(tmp_path):
  arm(tmp_path, "base", [3.0, 3.1])
  made_run(tmp_path / "again", seed=1, config={"data.name": "base"})
  with pytest.raises(BadConfig, match="seed 1 twice.*again.*base1"):
    made(tmp_path)


def test_a_baseline_that_is_not_there_is_answered_with_those_that_are(three):
  with pytest.raises(BadConfig, match="did you mean 'name=base'") as error:
    made(three, baseline="name=bas")
  assert "'name=swiglu'" in str(error.value)


def test_arms_are_named_by_the_keys_that_tell_them_apart(tmp_path):
  for seed in range(2):
    for dim, rate in ((8, 1e-3), (16, 1e-3), (8, 2e-3)):
      made_run(
        tmp_path / f"{dim}-{rate}-{seed}", seed=seed,
        config={"model.dim": dim, "optim.learning_rate": rate,
                "log.every_steps": seed + 1},
      )  # fmt: skip
  names = [a.name for a in arms_of(open_runs([str(tmp_path)]))]
  assert sorted(names) == [
    "dim=16, learning_rate=0.001",
    "dim=8, learning_rate=0.001",
    "dim=8, learning_rate=0.002",
  ]
  by = arms_of(open_runs([str(tmp_path)]), ["model.dim"])
  assert sorted(len(a.runs) for a in by) == [2, 4]


def test_arms_that_differ_in_many_keys_are_called_as_their_runs_are(tmp_path):
  for name, number in (("wide", 8), ("deep", 16)):
    keys = ("dim", "layers", "heads", "mlp_dim", "vocab")
    made_run(tmp_path / name, config={f"model.{k}": number for k in keys})
  arms = arms_of(open_runs([str(tmp_path)]))
  assert sorted(a.name for a in arms) == ["deep", "wide"]
  assert all(len(a.values) == 5 for a in arms)
  named = arms_of(open_runs([str(tmp_path)]), ["model.dim"])
  assert sorted(a.name for a in named) == ["dim=16", "dim=8"]


def test_a_key_that_was_changed_on_the_way_is_told(tmp_path):
  for i in range(2):
    arm(tmp_path, f"arm{i}", [1.0, 2.0])
  rate = dict(key="optim.learning_rate", old=1e-3, new=2e-3)
  events = [
    dict(event="change", step=8, **rate),
    dict(event="change", step=9, key="log.every_steps", old=1, new=2),
    dict(event="change", step=9, key="a\x1b[2J", old=1, new=2),
    dict(event="change", step=9, key="hlo_sha256", old="a", new="b"),
  ]
  lines = "".join(json.dumps(e) + "\n" for e in events)
  (tmp_path / "arm00" / "events.jsonl").write_text(lines)
  notes = [n for n in made(tmp_path).notes if " was " in n]
  assert notes == [
    "arm00 (name=arm0): optim.learning_rate was 0.001 until step 8, and 0.002 "
    "from there on"
  ]


# Keys that a run of an older program lacks, with what it did.
SINCE = {
  "library": "xla", "cast_once": True, "optim.kind": "adamw",
  "model.kind": "decoder", "optim.b1": 0.9, "model.parallel": False,
  "objective": {"kind": "tokens", "z_loss": 0.0, "logits": "float32"},
  "data.validation_path": None,
}  # fmt: skip


def test_an_older_run_without_keys_that_came_later_is_of_the_same_arm(tmp_path):
  older = {"objective": {"kind": "tokens"}}
  made_run(tmp_path / "older", seed=0, config=older)
  made_run(tmp_path / "newer", seed=1, config=SINCE)
  (one,) = arms_of(open_runs([str(tmp_path)]))
  assert one.name == "all runs" and len(one.runs) == 2
  other = SINCE | {"library": "onednn", "optim.b1": 0.8}
  made_run(tmp_path / "other", seed=1, config=other)
  arms = arms_of(open_runs([str(tmp_path)]))
  assert sorted(a.name for a in arms) == ["b1=0.8", "b1=0.9"]
  assert compare(tmp_path / "older", tmp_path / "newer").config == [
    Change("seed", 0, 1)
  ]


def test_a_key_of_another_kind_is_no_default_of_this_one(tmp_path):
  made_run(tmp_path / "a", config={"optim.kind": "adamw", "optim.b2": 0.95})
  made_run(tmp_path / "s", config={"optim.kind": "sgd", "optim.nesterov": True})
  one, other = arms_of(open_runs([str(tmp_path)]))
  assert "optim.nesterov" not in one.runs[0].config["optim"]
  assert one.values["optim.nesterov"] is None
  assert "optim.b2" not in other.values  # sgd has it too, of that default


def other_text(name):
  return {"heldout_fingerprints": {"evaluate.heldout": name}}


def test_scores_by_the_features_of_two_networks_are_not_compared(tmp_path):
  prints = {"evaluate.heldout": "h0", "evaluate.heldout.features": "n1"}
  arm(tmp_path, "base", [3.0, 3.1], about={"heldout_fingerprints": prints})
  prints = prints | {"evaluate.heldout.features": "n2"}
  arm(tmp_path, "other", [2.0, 2.1], about={"heldout_fingerprints": prints})
  with pytest.raises(BadConfig, match="different networks, n1.*n2"):
    made(tmp_path)


def test_bits_per_byte_of_unlike_texts_of_the_same_ids_are_not_compared(
  tmp_path,
):
  metric = "eval/heldout/bits_per_byte"
  for name, text in (("base", "t1"), ("other", "t2")):
    prints = {"evaluate.heldout": "h0", "evaluate.heldout.texts": text}
    arm(
      tmp_path, name, [3.0, 3.1], final={metric: 1.0},
      about={"heldout_fingerprints": prints},
    )  # fmt: skip
  assert not made(tmp_path).notes  # a token's loss is of the same tokens
  with pytest.raises(BadConfig, match="same ids.*t1: base.*t2: other"):
    made(tmp_path, metric=metric)


@pytest.mark.parametrize(
  "name, more",
  [
    ("recall", True), ("precision", True), ("image_recall_at_1", True),
    ("top5", True), ("accuracy", True), ("fid", False), ("loss", False),
    ("wer", False), ("rouge1", True), ("rougeL", True),
    ("image_to_text", True), ("text_to_image", True), ("perplexity", False),
    ("loss_quarter1", False), ("scale", None), ("real", None), ("used", None),
  ],
)  # fmt: skip
def test_which_of_two_values_is_the_better_one(name, more):
  assert comparable.higher_is_better(f"eval/drawn/{name}") is more


@pytest.mark.parametrize(
  "metric, more",
  [
    ("speed/tokens_per_second", True), ("norm/grad", None), ("loss", False),
    ("train/quantizer/perplexity", None), ("train/loss", False),
  ],
)  # fmt: skip
def test_pace_is_better_and_codes_in_use_are_no_perplexity_of_a_text(
  metric, more
):
  assert comparable.higher_is_better(metric) is more


def test_no_verdict_says_better_of_what_nobody_says_that_of(tmp_path):
  metric = "eval/heldout/scale"
  for name, values in (("base", (3, 4, 5)), ("other", (7, 8, 9.01))):
    for i, value in enumerate(values):
      arm(tmp_path, name, [1.0], final={metric: value}, first_seed=i)
      (tmp_path / f"{name}0").rename(tmp_path / f"{name} {i}")
  found = made(tmp_path, metric=metric)
  assert found.results[1].versus.verdict == "more"
  assert "better" not in table.sections(found)[0][0]
  figure = table.forest_picture(found)
  below = figure.axes[1]
  pictures.plots().close(figure)
  assert "better" not in below.get_xlabel()
  assert "filled: Holm's p" in below.get_title(loc="left")


@pytest.mark.parametrize("metric", [LOSS, "train/loss"])
def test_pairs_told_from_more_others_are_not_compared(tmp_path, metric):
  told = {"objective": {"kind": "contrastive"}}
  arm(tmp_path, "base", [3.0, 3.1], config=told | {"data.batch": 8})
  arm(tmp_path, "other", [2.0, 2.1], config=told | {"data.batch": 4})
  with pytest.raises(BadConfig, match="all others of a batch.*4: other.*8: b"):
    made(tmp_path, metric=metric)


def test_other_held_out_data_is_refused_with_the_sets(tmp_path):
  arm(tmp_path, "base", [3.0, 3.1])
  arm(tmp_path, "other", [2.0, 2.1], about=other_text("h1"))
  with pytest.raises(BadConfig, match="different held-out data.*h0.*h1"):
    made(tmp_path)


def held_out_by(batch, batches, **data):
  """Keys of a config that scores so many batches of so many windows."""
  keys = {"data.path": "x.txt", "data.batch": batch}
  heldout = {"kind": "loss", "batches": batches, "every_steps": 40}
  keys |= {f"data.{key}": value for key, value in data.items()}
  return keys | {"evaluate": {"heldout": heldout}}


@pytest.mark.parametrize("stored", [False, True])
def test_equal_windows_in_batches_of_other_sizes_are_compared(tmp_path, stored):
  arm(tmp_path / "runs", "base", [3.0, 3.1], config=held_out_by(2, 8))
  arm(
    tmp_path / "runs", "wide", [2.0, 2.1], config=held_out_by(4, 4),
    about=other_text("h1"),
  )  # fmt: skip
  words = [str(tmp_path / "runs")]
  if stored:
    runs = open_runs(words)
    names = {r.name: r.name.rstrip("01") for r in runs}
    words = [str(tmp_path / "results.jsonl")]
    text = results.lines_of(runs, names, [LOSS])
    (tmp_path / "results.jsonl").write_text(text)
  arms = arms_of(open_runs(words), () if stored else ("data.name",))
  found = ablation(arms, metric=LOSS)
  assert [r.summary.n for r in found.results] == [2, 2]
  assert any("the same text" in note for note in found.notes)


@pytest.mark.parametrize(
  "other",
  [
    held_out_by(4, 5), held_out_by(4, 4, length=8), held_out_by(4, None),
    held_out_by(4, 4, validation_path="y.txt"),
    held_out_by(4, 4, tokenizer="hf:x"),
  ],
)  # fmt: skip
def test_other_windows_of_the_same_text_are_refused(tmp_path, other):
  arm(tmp_path, "base", [3.0, 3.1], config=held_out_by(2, 8))
  arm(tmp_path, "other", [2.0, 2.1], config=other, about=other_text("h1"))
  with pytest.raises(BadConfig, match="different held-out data"):
    made(tmp_path)


@pytest.mark.parametrize("gzip", [2.0, 2.5])
def test_other_tokenizers_are_compared_by_byte_where_the_text_is_one(
  tmp_path, gzip
):
  yardsticks = {
    "eval/heldout/gzip_bits_per_byte": 2.0,
    "eval/heldout/xz_bits_per_byte": 1.8,
  }
  arm(tmp_path, "bytes", [3.0, 3.1], final=yardsticks | {BITS: 2.2})
  arm(
    tmp_path, "pieces", [4.0, 4.1],
    final=yardsticks
    | {BITS: 2.1, "eval/heldout/gzip_bits_per_byte": gzip},
    about=other_text("h1") | {"tokenizer_fingerprint": "t1"},
  )  # fmt: skip
  if gzip == 2.5:
    with pytest.raises(BadConfig, match="different held-out data"):
      made(tmp_path)
    return
  found = made(tmp_path)
  assert found.metric == BITS
  assert any("tokenizers differ" in note for note in found.notes)
  with pytest.raises(BadConfig, match="different tokenizers"):
    made(tmp_path, metric="train/loss")


def test_other_tokenizers_without_bits_per_byte_are_refused(tmp_path):
  arm(tmp_path, "bytes", [3.0, 3.1])
  arm(tmp_path, "pieces", [4.0, 4.1], about={"tokenizer_fingerprint": "t1"})
  with pytest.raises(BadConfig, match="different tokenizers.*bits_per_byte"):
    made(tmp_path)


def test_runs_of_other_lengths_need_a_place(tmp_path):
  arm(tmp_path, "base", [3.0, 3.1])
  arm(tmp_path, "long", [2.0, 2.1], steps=80, config={"steps": 80})
  with pytest.raises(BadConfig, match="end at different steps"):
    made(tmp_path)
  found = made(tmp_path, at="step")
  assert found.place.value == 40
  assert any("before the end of its schedule" in n for n in found.notes)
  found = made(tmp_path, at="tokens:100")
  assert all(v.interpolated for r in found.results for v in r.values)
  for bad in ("stepp", "tokens:x", "tokens:-1"):
    with pytest.raises(BadConfig, match="--at="):
      made(tmp_path, at=bad)


def test_the_baseline_reaches_an_arms_loss_so_much_earlier(tmp_path):
  for name, best in (("base", 2.0), ("worse", 2.2)):
    for seed in range(2):
      made_run(
        tmp_path / f"{name}{seed}", seed=seed, best=best,
        config={"data.name": name},
      )  # fmt: skip
  versus = made(tmp_path).results[1].versus
  # base is 2 + 3/sqrt(step) at steps 10, 20, 30, 40; worse ends at 2.6743.
  y = [2 + 3 / np.sqrt(s) for s in (10, 20)]
  wanted = np.interp(-(2.2 + 3 / np.sqrt(40)), [-y[0], -y[1]], [10, 20]) - 40
  assert versus.equivalent.difference == pytest.approx(wanted)
  assert "earlier" in versus.equivalent.words
  versus = made(tmp_path, baseline="name=worse").results[0].versus
  assert versus.equivalent.at is None
  assert versus.equivalent.words == "not reached by step 40"


def test_a_seed_far_from_the_others_counts_and_is_pointed_at(tmp_path):
  arm(tmp_path, "base", [3.0, 3.01, 3.02, 3.03, 4.0])
  found = made(tmp_path)
  assert found.results[0].summary.n == 5
  assert any(n.startswith("base4") and "deviations" in n for n in found.notes)


def test_a_value_beyond_all_losses_does_not_count(tmp_path, capsys):
  """Its square, or that of the spread, would be no number any more."""
  rows = ["a,0,1e308", "a,1,2.0", "a,2,2.1", "b,0,1e200", "b,1,1.0", "b,2,1.2"]
  path = tmp_path / "x.csv"
  path.write_text("\n".join(["arm,seed,eval/heldout/loss", *rows]) + "\n")
  found = ablation(arms_of(open_runs([str(path)])), metric="eval/heldout/loss")
  assert [r.summary.n for r in found.results] == [2, 2]
  assert sum("does not count" in note for note in found.notes) == 2
  assert "nan" not in table.markdown(found)


def test_tiny_spreads_have_degrees_of_freedom_too():
  small = statistics.welch([1e-90, 2e-90, 3e-90], [2e-90, 4e-90, 7e-90])
  large = statistics.welch([1.0, 2.0, 3.0], [2.0, 4.0, 7.0])
  assert small.df == pytest.approx(large.df)


def test_masked_sets_cut_otherwise_are_the_same_text_by_their_configs(tmp_path):
  """They have no bits per byte; evaluate.heldout.batches is None by default."""
  entry = {"kind": "loss", "data": {"split": "validation"}, "batches": None}
  for i in range(2):
    made_run(
      tmp_path / f"x{i}",
      config={
        "data.path": "x",
        "evaluate": {"heldout": entry},
        "data.batch": i + 1,
      },
      about={"heldout_fingerprints": {"evaluate.heldout": f"h{i}"}},
    )
  runs = open_runs([str(tmp_path)])
  metric, notes = comparable.fair_metric(runs, "eval/heldout/loss")
  assert metric == "eval/heldout/loss" and "same text" in notes[0]


def test_a_game_whose_loss_grows_and_a_good_start_are_not_diverged(tmp_path):
  """Nor is one noisy row a start: a run may begin with trained parameters."""
  grown = lambda step: 2.0 + step / 10  # noqa: E731
  noisy = lambda step: 0.02 + 0.01 * (step % 2 == 0)  # noqa: E731
  game = {"objective": {"kind": "adversarial"}}
  made_run(tmp_path / "game", config=game, loss=grown)
  made_run(tmp_path / "plain", loss=grown)
  made_run(tmp_path / "tuned", loss=noisy)
  states = {r.name: r.status for r in open_runs([str(tmp_path)])}
  assert states == {
    "game": "finished", "plain": "diverged", "tuned": "finished"
  }  # fmt: skip
