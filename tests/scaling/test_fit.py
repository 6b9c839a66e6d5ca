"""The command `fit`: points that are read strictly, a JSON that says it all."""

import json
import math
import re

import numpy as np
import pytest

from aigc_jax import fit
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.scaling import fits, points, results, run_points
from aigc_jax.scaling.runs import open_runs
from configs import quickstart
from tests import commands
from tests.scaling.made import made_run
from tests.scaling.test_laws import chinchilla_points


@pytest.fixture
def call(monkeypatch, capsys):
  """fit's main with flags as on a command line; returns what it printed."""

  def run(*words):
    with monkeypatch.context() as patch:
      mine = commands.own_flags(patch)
      fit.define_flags()
      assert fit.main(mine(["fit", *words])[1:]) == 0
    return capsys.readouterr().out

  return run


def write(path, header, rows):
  lines = [header, *(",".join(map(str, row)) for row in rows)]
  path.write_text("\n".join(lines) + "\n")
  return path


@pytest.fixture
def power_csv(tmp_path):
  flops = np.geomspace(1e17, 1e21, 12)
  draw = np.random.default_rng(0)
  loss = (1.7 + 200 * flops**-0.12) * np.exp(0.002 * draw.normal(size=12))
  return write(tmp_path / "x.csv", "C,val", zip(flops, loss, strict=True))


def test_a_fit_is_a_json_from_which_all_else_follows(call, power_csv, tmp_path):
  out, png = tmp_path / "fit.json", tmp_path / "fit.png"
  words = ["--law=power", "--columns=flops=C,loss=val", "--bootstrap=30"]
  printed = call(str(power_csv), *words, "--budgets=1e22", f"--out={out},{png}")
  found = json.loads(out.read_text())
  assert png.read_bytes().startswith(b"\x89PNG")
  for name, c in found["constants"].items():
    assert {"value", "stderr", "low", "high"} <= c.keys()
    assert c["low"] <= c["value"] <= c["high"] and c["stderr"] > 0
    assert name in printed
  assert found["starts"]["tried"] == 150 and found["starts"]["agreed"] > 15
  assert "of 150 starts came to it" in printed
  assert len(found["provenance"]["data_sha256"]) == 64
  assert found["provenance"]["code"]["sha256"]
  assert "diff" not in found["provenance"]["code"]
  power_csv.unlink()  # nothing of it is needed any more
  again = tmp_path / "again.json"
  call(str(out), "--budgets=1e22,1e24", f"--out={again}")
  more = json.loads(again.read_text())["predictions"]
  assert more[0] == found["predictions"][0] and more[1]["flops"] == 1e24
  assert more[1]["outside"] == ["flops"]
  c = {k: v["value"] for k, v in found["constants"].items()}
  wanted = c["E"] + c["A"] * 1e24 ** -c["alpha"]
  assert more[1]["loss"]["value"] == pytest.approx(wanted)


@pytest.mark.parametrize(
  "bad, message",
  [
    ("", "loss is empty"),
    ("nan", "line 3: loss='nan' is no loss"),
    ("-2.1", "line 3: loss='-2.1'"),
    ("0", "a number above 0"),
    ("inf", "loss='inf'"),
    ("2.x", "loss='2.x'"),
    ("2.0,7", "line 3: 4 fields, where the header has 3"),
  ],
)
def test_a_line_that_is_no_point_is_refused_by_its_number(
  tmp_path, bad, message
):
  path = write(
    tmp_path / "x.csv", "params,tokens,loss",
    [(1e7, 1e9, 3.0), (2e7, 1e9, bad), (3e7, 1e9, 2.5)],
  )  # fmt: skip
  with pytest.raises(BadData, match=message):
    points.from_csv(path)


def test_the_ways_out_that_refusals_name_work(tmp_path):
  path = write(
    tmp_path / "x.csv", "params,tokens,loss",
    [(1e7, 1e9, 3.0), (2e7, 1e9, "nan"), (3e7, 1e9, ""), (4e7, 1e9, "inf"),
     (5e7, 1e9, 2.5), (6e7, 1e9, 1e200), (7e7, 1e9, -1.0)],
  )  # fmt: skip
  with pytest.raises(BadData, match="--where=") as refusal:
    points.from_csv(path)
  (where,) = re.findall("--where='(.*)'", str(refusal.value))
  found = points.from_csv(path, where=where.split(","))
  assert found.names == ("line 2", "line 6")
  assert "2 of 7 rows kept by loss>=1e-60 and loss<=1e+60" in found.notes


def test_columns_are_named_with_the_nearest_there_is(tmp_path):
  path = write(tmp_path / "x.csv", "parms,tokens,loss", [(1e7, 1e9, 3.0)])
  found = points.from_csv(path)
  with pytest.raises(
    BadConfig, match="params is not there.*--columns=params=N"
  ):
    found.need(("params", "loss"), "chinchilla")
  with pytest.raises(BadConfig, match="did you mean 'parms'"):
    points.from_csv(path, {"params": "parm"})
  with pytest.raises(BadConfig, match="did you mean 'params'"):
    points.from_csv(path, {"param": "parms"})
  with pytest.raises(BadConfig, match="did you mean 'tokens'"):
    points.from_csv(path, where=["token=3"])
  with pytest.raises(BadConfig, match="no row is left"):
    points.from_csv(path, where=["tokens=3"])
  # Of names that are none of ours, beside a setting that comes again.
  own = [(n, 1e9, 3.0, kind) for n in (1, 2) for kind in "ab"]
  other = write(tmp_path / "w.csv", "N,D,error,kind", own)
  with pytest.raises(BadConfig, match="there are: N, D, error, kind; "):
    points.from_csv(other).need(("params", "loss"), "chinchilla")
  twice = write(tmp_path / "y.csv", "loss,loss", [(1, 2)])
  with pytest.raises(BadData, match="two columns"):
    points.from_csv(twice)
  with pytest.raises(BadData, match="no rows"):
    points.from_csv(write(tmp_path / "z.csv", "loss", []))


def test_flops_of_another_convention_are_pointed_at(tmp_path):
  rows = [(n, 1e9, 6 * n * 1e9, 3.0 - n / 1e9) for n in (1e7, 2e7, 3e7, 4e7)]
  rows[2] = (3e7, 1e9, 2 * 3e7 * 1e9, 2.9)
  path = write(tmp_path / "x.csv", "params,tokens,flops,loss", rows)
  notes = " ".join(points.from_csv(path).notes)
  assert "1 of 4 points" in notes and "forward alone is 3" in notes
  assert "the odd ones are line 4" in notes


def test_settings_that_one_fit_would_mix_are_refused_or_told(tmp_path):
  rows = [("a", 1e7, 3.0), ("b", 1e7, 2.9), ("a", 3e7, 2.8), ("b", 4e7, 3.0)]
  path = write(tmp_path / "x.csv", "setting,params,loss", rows)
  with pytest.raises(BadConfig, match="'setting' has 2 values.*may not mix"):
    points.from_csv(path)
  assert len(points.from_csv(path, where=["setting=b"])) == 2
  assert len(points.from_csv(path, where=["setting!="])) == 4
  rows[1] = ("b", 2e7, 2.9)
  notes = points.from_csv(write(path, "setting,params,loss", rows)).notes
  assert "column 'setting' has 2 values" in " ".join(notes)


def test_repeated_lines_are_told(tmp_path):
  rows = [(1e7, 3.0), (3e7, 2.8), (1e7, 3.0)]
  path = write(tmp_path / "x.csv", "params,loss", rows)
  assert "line 4 repeats line 2" in " ".join(points.from_csv(path).notes)


def test_a_fit_that_was_damaged_is_refused_where_it_is_drawn(
  call, power_csv, tmp_path
):
  out = tmp_path / "fit.json"
  call(str(power_csv), "--law=power", "--columns=flops=C,loss=val",
       "--bootstrap=0", f"--out={out}")  # fmt: skip
  good = out.read_text()
  for strange in (None, {"a": 1}, "x", []):
    found = json.loads(good)
    found["points"]["columns"]["loss"][0] = strange
    out.write_text(json.dumps(found))
    with pytest.raises(BadData, match="fit.json is no fit that this command"):
      call(str(out), f"--out={tmp_path / 'x.png'}")


def test_what_is_no_fit_or_no_law_is_refused(call, power_csv, tmp_path):
  with pytest.raises(BadConfig, match="did you mean 'chinchilla'"):
    call(str(power_csv), "--law=chinchila")
  (tmp_path / "x.json").write_text("[1]")
  with pytest.raises(BadData, match="no fit that this command wrote"):
    call(str(tmp_path / "x.json"))
  with pytest.raises(BadConfig, match="no such file"):
    call(str(tmp_path / "nowhere.csv"))
  with pytest.raises(BadConfig, match="such as x.png"):
    call(str(power_csv), "--out=x.txt")
  with pytest.raises(BadConfig, match="NAME=VALUE"):
    call(str(power_csv), "--fix=alpha")
  with pytest.raises(BadConfig, match="name a CSV"):
    call()


def ladder(folder, count=8, **more):
  """Runs whose last losses follow a law of tokens and params."""
  made = chinchilla_points(count)
  for i in range(count):
    c = {k: float(v[i]) for k, v in made.columns.items()}
    path = made_run(
      folder / f"run{i}",
      final={"eval/heldout/loss": c["loss"]},
      about={"parameters": round(c["params"])},
      **more,
    )
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
      share = row["step"] / 40
      row["tokens"], row["flops"] = c["tokens"] * share, c["flops"] * share
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return made


def test_work_directories_give_the_points_they_recorded(tmp_path):
  made = ladder(tmp_path)
  found = run_points.from_runs([str(tmp_path)])
  for name in ("params", "tokens", "flops", "loss"):
    assert found.columns[name] == pytest.approx(made.columns[name], rel=1e-6)
  assert any("with embeddings" in note for note in found.notes)
  curves = run_points.from_runs([str(tmp_path)], curves=True)
  assert len(curves) == 4 * len(found)


def test_a_file_of_results_gives_the_points_of_its_runs(call, tmp_path):
  ladder(tmp_path / "runs")
  runs = open_runs([str(tmp_path / "runs")])
  file = tmp_path / "results.jsonl"
  file.write_text(
    results.lines_of(runs, {r.name: "all" for r in runs}, ["eval/heldout/loss"])
  )
  theirs = run_points.from_runs([str(tmp_path / "runs")])
  ours = run_points.from_runs([str(file)])
  for name in ("params", "tokens", "flops", "loss"):
    assert list(ours.columns[name]) == list(theirs.columns[name])
  # The command takes it for what it is, not for a CSV.
  words = ("--law=power", "--of=params", "--bootstrap=0")
  assert "8 points" in call(str(file), *words)


def test_runs_that_no_law_may_mix_are_refused(tmp_path):
  ladder(tmp_path / "good", count=3)
  good = str(tmp_path / "good")
  made_run(
    tmp_path / "other",
    about={"heldout_fingerprints": {"evaluate.heldout": "h1"}, "parameters": 9},
  )
  with pytest.raises(BadConfig, match="different held-out data"):
    run_points.from_runs([good, str(tmp_path / "other")])
  short = made_run(
    tmp_path / "short", finished=False, steps=20, config={"steps": 40},
    about={"parameters": 9},
  )  # fmt: skip
  with pytest.raises(BadConfig, match="unfinished.*--allow_unfinished"):
    run_points.from_runs([good, str(short)])
  assert len(run_points.from_runs([good, str(short)], unfinished=True)) == 4
  bent = {"optim.schedule": "cosine", "optim.decay_steps": 80,
          "optim.warmup_steps": 0}  # fmt: skip
  made_run(tmp_path / "bent", config=bent, about={"parameters": 9})
  with pytest.raises(BadConfig, match="ends at step 80.*Chinchilla's pitfall"):
    run_points.from_runs([good, str(tmp_path / "bent")])


def test_parameters_are_counted_with_and_without_embeddings(tmp_path):
  config = quickstart.get_config().to_dict()
  path = made_run(tmp_path / "a")
  (path / "config.json").write_text(json.dumps(config))
  (run,) = run_points.open_runs([str(path)])
  both = run_points.parameters(run, True)
  without = run_points.parameters(run, False)
  assert both - without == 2048 * 128
  assert math.isclose(both, 656_000, rel_tol=0.01)


@pytest.mark.parametrize(
  ("words", "why"),
  [
    (["--holdout=nan"], "--holdout=nan: expected a number of points"),
    (["--holdout=inf"], "--holdout=inf: expected a number of points"),
    (["--holdout=11"], "--holdout=11 holds out 11 of 12 points"),
    (["--budgets=0"], "--budgets: '0' is no number, above 0"),
    (["--delta=0"], "--delta=0.0: expected above 0"),
    (["--delta=nan"], "--delta=nan: expected above 0"),
    (["--near=4"], "--near is of --law=isoflop"),
    (["--unique_tokens=5"], "--unique_tokens is of --law=data_constrained"),
    (["--metric=x"], "--metric is of work directories"),
    (["--allow_unfinished"], "--allow_unfinished is of work directories"),
    (["--objective=squares", "--delta=1"], "--delta is of --objective=huber"),
    (["--law=chinchilla", "--of=params"], "--of is of --law=kaplan"),
    (["--law=isoflop", "--fix=a=1"], "--fix is of laws with a formula"),
    (["--law=envelope", "--holdout=3"], "--holdout is of other laws"),
    (["--of=params", "--budgets=1e9"], "--budgets are FLOPs, and this"),
    (["--law=data_constrained", "--budgets=1e9"], "add --unique_tokens=1e9"),
  ],
)  # fmt: skip
def test_a_flag_is_read_or_refused_before_anything_is_fitted(
  call, power_csv, monkeypatch, words, why
):
  monkeypatch.setattr(fit.fits.fitting, "minimise", None)
  with pytest.raises(BadConfig) as refusal:
    call(
      str(power_csv), "--law=power", "--columns=flops=C,loss=val", *words
    )  # fmt: skip
  assert why in str(refusal.value)


def test_a_fit_that_is_read_again_refuses_what_was_for_fitting(call, tmp_path):
  (tmp_path / "fit.json").write_text("{}")
  for flag in ("--law=isoflop", "--holdout=3", "--bootstrap=7", "--where=x>1"):
    with pytest.raises(BadConfig, match="is of points, and .* is a fit"):
      call(str(tmp_path / "fit.json"), flag)


def test_no_budget_need_be_held_out_of_a_law_of_optima(call, tmp_path):
  rows = [(1e18, 1e8), (1e19, 3e8), (1e20, 1.1e9)]
  path = write(tmp_path / "x.csv", "flops,optimal_params", rows)
  assert "held out" not in call(str(path), "--law=isoflop", "--holdout=00")
  with pytest.raises(BadConfig, match="expected a number of budgets"):
    call(str(path), "--law=isoflop", "--holdout=\u00b2")
  with pytest.raises(BadConfig, match="the optima are given"):
    call(str(path), "--law=isoflop", "--near=4")


@pytest.mark.parametrize("stderr", ["1e-300", "1e300"])
def test_numbers_whose_squares_are_none_are_refused_by_line(tmp_path, stderr):
  rows = [(1e18, 1e8, stderr), (1e19, 3e8, stderr), (1e20, 1e9, stderr)]
  path = write(tmp_path / "x.csv", "flops,optimal_params,stderr", rows)
  with pytest.raises(BadData, match="line 2: stderr='1e.?300' is no stderr"):
    points.from_csv(path)


def test_the_largest_budget_is_not_rounded_to_where_no_point_is():
  assert fits.round_budgets(7.5054e10) == [7.5054e10, 7.51e11, 7.51e12]
  assert fits.round_budgets(7.5044e10) == [7.5e10, 7.5e11, 7.5e12]
