"""Reports on the folder of a sweep, and on files that hold runs."""

import json

import pytest

from aigc_jax.errors import BadConfig, BadData
from aigc_jax.scaling import results, table
from aigc_jax.scaling.ablation import ablation
from aigc_jax.scaling.arms import arms_of
from aigc_jax.scaling.runs import open_runs
from aigc_jax.scaling.sweeps import ledger
from tests.scaling.made import made_run
from tests.scaling.sweeping import plan_of, planned
from tests.scaling.test_report import call

LOSS = "eval/heldout/loss"


@pytest.fixture
def swept(tmp_path):
  """A sweep of two arms with three seeds; one point failed at its start."""
  out = tmp_path / "out"
  points = [
    planned(seed, arm, **{"model.qk_norm": str(arm == "qk")})
    for seed in range(3)
    for arm in ("qk", "plain")
  ]
  index = ledger.write(plan_of(*points), out)
  for entry in index.entries[:-1]:
    made_run(
      entry.workdir, seed=entry.seed, best=2 - 0.05 * (entry.arm == "qk")
    )
  ended = ({"started": 0.0, "status": 78},)
  state = ledger.State("failed", ended, ("no such file",))
  ledger.write_state(index.entries[-1], state)
  return out


def test_the_arms_of_a_sweep_have_its_names_and_its_order(swept):
  arms = arms_of(open_runs([str(swept)]))
  assert [(a.name, a.seeds) for a in arms] == [
    ("qk", [0, 1, 2]), ("plain", [0, 1]),
  ]  # fmt: skip
  assert arms[0].values == {"model.qk_norm": "True"}


def test_a_point_that_never_began_is_shown_with_its_reason(call, swept, capsys):
  assert call("table", str(swept), "--baseline=plain") == 0
  text = capsys.readouterr().out
  assert "2 finished, 1 unfinished" in text
  assert "failed, never came to a step (no such file)" in text


def test_a_text_where_tokens_are_counted_is_refused_by_its_line(tmp_path):
  head = {"run": "a", "arm": "a", "seed": 0, "status": "finished"}
  row = {"run": "a", "step": 1, "tokens": "x", "train/loss": 2.0}
  path = tmp_path / "x.jsonl"
  path.write_text(f"{json.dumps(head)}\n{json.dumps(row)}\n")
  with pytest.raises(BadData, match="line 2: tokens: expected a number"):
    results.read(str(path))


def test_points_that_the_sweep_has_no_more_do_not_count(swept):
  index = ledger.read_index(swept)
  ledger.write(plan_of(planned(0, "qk", **{"model.qk_norm": "True"})), swept)
  assert len(list(swept.glob("runs/*"))) == len(index.entries) - 1
  assert len(open_runs([str(swept)])) == 1


def test_the_baseline_of_a_sweep_is_that_of_its_table(call, swept, capsys):
  path = swept / "sweep.json"
  path.write_text(json.dumps(json.loads(path.read_text())
                             | {"baseline": "plain"}))  # fmt: skip
  call("table", str(swept))
  assert "### Against plain" in capsys.readouterr().out
  call("table", str(swept), "--baseline=qk")
  assert "### Against qk" in capsys.readouterr().out
  with pytest.raises(BadConfig, match="no such arm; did you mean 'plain'"):
    call("table", str(swept), "--baseline=plane")


def test_a_sweep_that_has_not_begun_says_how_to_begin(tmp_path):
  ledger.write(plan_of(planned(0)), tmp_path / "out")
  with pytest.raises(BadConfig, match="none of whose points has begun"):
    open_runs([str(tmp_path / "out")])


def test_a_file_of_results_gives_the_same_table_and_pictures(
  call, swept, tmp_path, capsys
):
  out = tmp_path / "results.jsonl"
  assert call("rows", str(swept), f"--out={out}") == 0
  call("table", str(swept), "--baseline=plain", f"--out={tmp_path / 'a.json'}")
  call("table", str(out), "--baseline=plain", f"--out={tmp_path / 'b.json'}")
  one, other = (
    json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"
  )
  for a, b in zip(one["arms"], other["arms"], strict=True):
    assert a["versus_baseline"] == b["versus_baseline"]
    assert a["name"] == b["name"]
  first, second = (x["arms"][0]["summary"] for x in (one, other))
  assert first == second and first["n"] == 3
  picture = tmp_path / "curve.png"
  assert call("curve", str(out), f"--out={picture}") == 0
  assert picture.stat().st_size


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
  made_run(tmp_path / "run", steps=1000)
  (r,) = open_runs([str(tmp_path / "run")])
  text = results.lines_of([r], {r.name: "all"}, ["train/loss", LOSS])
  rows = [json.loads(line) for line in text.splitlines()][1:]
  trained = [row["step"] for row in rows if "train/loss" in row]
  assert len(trained) <= results.ROWS + 1 and trained[-1] == 1000
  assert sum(LOSS in row for row in rows) == 100  # of every evaluation


def test_a_csv_has_arms_and_seeds(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text(
    "arm,seed,loss,comment\na,0,2.0,x\na,1,2.2,\nb,0,1.0,\nb,1,1.1,\n"
  )
  found = ablation(arms_of(open_runs([str(path)])), metric="loss")
  assert [r.summary.mean for r in found.results] == [2.1, 1.05]
  assert found.results[1].versus.difference == pytest.approx(-1.05)


def test_arms_of_a_grid_are_held_against_the_baseline_of_their_own_values(
  tmp_path,
):
  path = tmp_path / "x.csv"
  lines = ["arm,seed,loss"]
  for rate, loss in ((1, 3.0), (10, 4.0)):
    for arm, more in (("qk", -0.5), ("plain", 0.0)):
      lines += [f'"{arm}, rate={rate}",{s},{loss + more + s}' for s in (0, 1)]
  lines += ['"plain, rate=100",0,5.0', '"qk, rate=7",0,5.0', "other,0,5.0"]
  path.write_text("\n".join(lines) + "\n")
  arms = arms_of(open_runs([str(path)]))
  found = ablation(arms, metric="loss", baseline="plain")
  versus = {r.arm.name: r.versus for r in found.results}
  assert versus["qk, rate=1"].difference == pytest.approx(-0.5)
  assert versus["qk, rate=10"].difference == pytest.approx(-0.5)
  for name in ("qk, rate=7", "other"):
    assert versus[name].verdict == "no arm of 'plain' has these values"
  text = table.markdown(found)
  assert text.count("(baseline)") == 3 and "### Against plain" in text
  one = ablation(arms, metric="loss", baseline="plain, rate=10")
  assert one.results[0].versus.difference == pytest.approx(-1.5)
  with pytest.raises(BadConfig, match="no such arm"):
    ablation(arms, metric="loss", baseline="plai")


def test_a_loss_that_is_no_number_is_shown_and_does_not_count(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("arm,seed,loss\na,0,2.0\na,1,nan\na,2,2.1\n")
  found = ablation(arms_of(open_runs([str(path)])), metric="loss")
  assert found.results[0].summary.n == 2
  assert any("a seed 1" in note for note in found.notes)


@pytest.mark.parametrize(
  "text, message",
  [
    ("arm,loss\na,1\n", "no column 'seed'"),
    ("arm,seed\na,1\n", "no column of a metric"),
    ("arm,seed,loss\na,x,1\n", "line 2: seed='x' is no whole number"),
    ("arm,seed,eval/loss\na,1,much\n", "line 2: eval/loss='much' is no number"),
    ("arm,seed,loss\na,1,1\na,1,2\n", "seed 1 is there twice at step 1"),
    ("arm,seed,run,loss\na,1,r,1\nb,1,r,2\n", "'r' has two arms or seeds"),
    ("arm,seed,loss\n", "holds no rows"),
  ],
)
def test_a_csv_that_holds_no_runs_is_refused_by_line(text, message, tmp_path):
  path = tmp_path / "x.csv"
  path.write_text(text)
  with pytest.raises((BadConfig, BadData), match=message):
    open_runs([str(path)])


@pytest.mark.parametrize(
  "lines, message",
  [
    (["{"], "line 1"),
    ([{"run": "a", "step": 1}], "which no line before names"),
    ([{"run": "a", "arm": "x", "seed": 0}], "no 'status'"),
    ([{"run": "a", "arm": "x", "seed": 0, "status": "finished"}] * 2, "twice"),
    ([], "holds no run"),
  ],
)
def test_results_that_are_none_are_refused_by_line(lines, message, tmp_path):
  path = tmp_path / "x.jsonl"
  texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  path.write_text("".join(f"{text}\n" for text in texts))
  with pytest.raises(BadData, match=message):
    open_runs([str(path)])


def test_a_file_is_named_once(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("arm,seed,loss\na,0,2.0\na,1,2.2\n")
  assert len(open_runs([str(path)])) == 2
  with pytest.raises(BadConfig, match="is named twice"):
    open_runs([str(path), str(path)])


def test_a_run_of_no_arm_is_named_by_its_line(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("arm,seed,eval/heldout/loss\na,0,1.0\n,1,2.0\n")
  with pytest.raises(BadData, match="line 3: arm is empty"):
    results.read(str(path))
