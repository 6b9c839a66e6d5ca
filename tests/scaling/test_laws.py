"""Laws and fits against what was published, and against what was planted."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import fits, fitting, frontier, isoflop, laws
from aigc_jax.scaling.points import Points, completed

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "published.json").read_text())
BESIROGLU = dict(A=482.01, B=2085.43, E=1.81686, alpha=0.34781, beta=0.36585)


def points_of(**columns):
  columns = {
    k: v if k == "run" else np.asarray(v, np.float64)
    for k, v in columns.items()
  }
  count = len(next(iter(columns.values())))
  names = tuple(f"line {i + 2}" for i in range(count))
  return completed(Points(columns, names, "made.csv", "0" * 64, ()))


def loss_of(law, constants, **columns):
  x = {k: np.atleast_1d(np.asarray(v, float)) for k, v in columns.items()}
  return np.exp(law.log_loss(law.theta(constants)[None], x))[0]


def chinchilla_points(count=40, noise=0.0, seed=0, spread=1.3):
  """Points of BESIROGLU's law; sizes up to a factor 10**spread around."""
  draw = np.random.default_rng(seed)
  flops = 10 ** draw.uniform(18, 21.5, count)
  params = np.sqrt(flops / 120) * 10 ** draw.uniform(-spread, spread, count)
  tokens = flops / 6 / params
  loss = loss_of(laws.CHINCHILLA, BESIROGLU, params=params, tokens=tokens)
  loss *= np.exp(noise * draw.normal(size=count))
  return points_of(params=params, tokens=tokens, loss=loss)


def rows_of(name):
  with open(DATA / name, newline="") as file:
    return list(csv.DictReader(file))


def column(rows, name):
  return np.array([float(row[name]) for row in rows])


def test_kaplans_laws_give_the_published_points():
  known = PUBLISHED["kaplan2020"]
  for law, name, key in (("params", "N", "LN"), ("tokens", "D", "LD")):
    one = known[key]
    constants = {f"alpha_{name}": one["alpha"], f"{name}_c": one[f"{name}_c"]}
    for x, loss in one["points"].items():
      found = loss_of(laws.kaplan_of(law), constants, **{law: float(x)})
      assert found[0] == pytest.approx(loss, rel=1e-12)
  joint = dict(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13)
  for x, loss in known["LND"]["points"].items():
    n, d = map(float, x.split(","))
    found = loss_of(laws.KAPLAN, joint, params=n, tokens=d)
    assert found[0] == pytest.approx(loss, rel=1e-12)


def test_chinchillas_optimum_is_the_published_one():
  known = PUBLISHED["hoffmann2022"]
  logs = known["approach3_tex_log"]
  theta = np.array([[logs[k] for k in ("a", "b", "e", "alpha", "beta")]])
  n, d, _ = fits.optimum_of(laws.CHINCHILLA, None)(theta, 5.76e23)
  assert [n[0], d[0]] == pytest.approx(
    known["optimum_at_5p76e23"]["tex"], 1e-12
  )
  rounded = laws.CHINCHILLA.theta(known["approach3_rounded"])[None]
  n, d, _ = fits.optimum_of(laws.CHINCHILLA, None)(rounded, 5.76e23)
  wanted = known["optimum_at_5p76e23"]["rounded"]
  assert [n[0], d[0]] == pytest.approx(wanted, rel=1e-12)


def test_the_data_constrained_law_gives_the_published_points():
  known = PUBLISHED["data_constrained"]
  law, constants = laws.DATA_CONSTRAINED, known["constants"]
  for n, d, wanted in (
    (6.34e9, 242e9, 2.2256440889984477),
    (8.67e9, 178e9, 2.2269634075087867),
  ):
    x = dict(params=n, tokens=d, unique_tokens=25e9)
    assert loss_of(law, constants, **x)[0] == pytest.approx(wanted, rel=1e-12)
  theta = law.theta({k: constants[k] for k in law.names})[None]
  n, d, _ = fits.optimum_of(law, 25e9)(theta, 1e22)
  # The published optimum is the best of a grid.
  best = known["points_published"][
    "optimal_allocation(1e22,U=25e9) by README grid"
  ]
  assert [n[0], d[0]] == pytest.approx([best["N"], best["D"]], rel=0.01)
  rows = rows_of("data_constrained_182.csv")
  loss = column(rows, "loss")
  x = {k: column(rows, k) for k in ("params", "tokens", "unique_tokens")}
  left = loss - loss_of(law, constants, **x)
  r2 = 1 - (left**2).sum() / ((loss - loss.mean()) ** 2).sum()
  wanted = known["points_published"]["R2_182"]["full"]
  assert r2 == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
  "law",
  [laws.CHINCHILLA, laws.KAPLAN, laws.DATA_CONSTRAINED, laws.power_of("flops")],
)
def test_derivatives_are_those_of_finite_differences(law):
  draw = np.random.default_rng(0)
  x = {
    "params": 10 ** draw.uniform(7, 10, 9),
    "tokens": 10 ** draw.uniform(10, 11, 9),
    "flops": 10 ** draw.uniform(18, 21, 9),
    "unique_tokens": 10 ** draw.uniform(9, 10, 9),
  }
  theta = np.array([[np.median(s) for s in law.starts]]) * 0.9
  value, jacobian = law.value_and_jacobian(theta, x)
  for k in range(len(law.names)):
    step = np.zeros_like(theta)
    step[0, k] = 1e-6
    up, down = (law.log_loss(theta + s, x) for s in (step, -step))
    assert jacobian[..., k] == pytest.approx((up - down) / 2e-6, abs=1e-6)
  assert value == pytest.approx(law.log_loss(theta, x))


@pytest.mark.slow
def test_all_4500_starts_are_followed_and_exact_points_give_exact_constants():
  points = chinchilla_points(12)
  found = fits.parametric(points, laws.free(laws.CHINCHILLA), resamples=0)
  for name, value in BESIROGLU.items():
    c = found["constants"][name]
    assert c["value"] == pytest.approx(value, rel=1e-6) and c["identified"]
  assert found["starts"]["tried"] == 4500
  assert 450 < found["starts"]["agreed"] <= 4500
  assert found["holdout"]["mean_absolute_relative_error"] < 1e-6
  assert not found["not_identified"] and not found["outliers"]


def test_the_objective_is_the_sum_of_hubers_loss_of_the_logarithm():
  points = chinchilla_points(30, noise=0.01)
  free = laws.free(laws.CHINCHILLA)
  x = {k: points.columns[k] for k in ("params", "tokens")}
  objective = fitting.Objective(free, x, points.columns["loss"])
  z = laws.CHINCHILLA.theta(BESIROGLU)
  r = np.log(loss_of(laws.CHINCHILLA, BESIROGLU, **x)) - np.log(
    points.columns["loss"]
  )
  wanted = special.huber(1e-3, r).sum()
  assert objective.total(z) == pytest.approx(wanted, rel=1e-12)
  # From the published rounded constants, where a mean would stop at once.
  far = laws.CHINCHILLA.theta(PUBLISHED["hoffmann2022"]["approach3_rounded"])
  ends, costs = fitting.descend(objective, far[None])
  best = fitting.polish(objective, ends)
  assert objective.total(best) < wanted < objective.total(far)
  assert costs[0] == pytest.approx(objective.total(best), rel=1e-5)


@pytest.mark.slow
def test_a_planted_outlier_is_named_and_moves_little():
  points = chinchilla_points(40, noise=0.003)
  points.columns["loss"][7] *= 1.3
  free = laws.free(laws.CHINCHILLA, {"E": BESIROGLU["E"]})
  found = fits.parametric(points, free, resamples=20, holdout="0")
  assert [o["point"] for o in found["outliers"]] == ["line 9"]
  assert any("line 9" in w for w in found["warnings"])
  for name in ("alpha", "beta"):
    assert found["constants"][name]["value"] == pytest.approx(
      BESIROGLU[name], rel=0.03
    )
  assert found["constants"]["E"]["fixed"]


def test_tokens_in_proportion_to_params_identify_no_law_of_both():
  params = np.geomspace(1e7, 1e10, 12)
  loss = loss_of(laws.CHINCHILLA, BESIROGLU, params=params, tokens=20 * params)
  draw = np.random.default_rng(0)
  loss *= np.exp(0.003 * draw.normal(size=12))
  points = points_of(params=params, tokens=20 * params, loss=loss)
  free = laws.free(laws.CHINCHILLA, {"E": 1.81686})
  found = fits.parametric(points, free, resamples=60, holdout="0")
  assert {"A", "B", "alpha", "beta"} & found["not_identified"].keys()


def test_gadres_constants_follow_from_five_small_runs():
  rows = rows_of("gadre_104.csv")
  known = PUBLISHED["gadre"]["rpj/avg"]
  tags = {"d=96_l=8_h=4": (20, 320), "d=512_l=8_h=4": (20,),
          "d=576_l=24_h=8": (20,), "d=1024_l=24_h=8": (20,)}  # fmt: skip
  some = [
    r for r in rows
    if r["dataset_name"] == "rpj"
    and float(r["tok_mult"]) in tags.get(r["model_name"], ())
  ]  # fmt: skip
  assert len(some) == 5
  points = points_of(
    params=column(some, "N"), tokens=column(some, "D"),
    loss=column(some, "loss_c4_val"),
  )  # fmt: skip
  free = laws.free(laws.CHINCHILLA, tie=("alpha", "beta"))
  found = fits.parametric(
    points, free, kind="squares", resamples=0, holdout="0"
  )
  c = {k: v["value"] for k, v in found["constants"].items()}
  a, b, exponent, floor = known
  assert c["alpha"] == c["beta"] == pytest.approx(-exponent, rel=1e-3)
  assert c["A"] == pytest.approx(a, rel=5e-3)
  assert c["E"] == pytest.approx(floor, rel=1e-3)
  assert c["B"] == pytest.approx(b * 6 ** (exponent / 2), rel=5e-3)
  for key, error in (("rpj/pred/open_lm_1b/M=640", 0.7103),
                     ("rpj/pred/open_lm_7b/M=20", 0.7320)):  # fmt: skip
    one = PUBLISHED["gadre_predictions"][key]
    tokens = one["N"] * float(key.rpartition("=")[2])
    predicted = loss_of(laws.CHINCHILLA, c, params=one["N"], tokens=tokens)[0]
    assert 100 * abs(predicted / one["loss"] - 1) == pytest.approx(
      error, abs=0.02
    )


def test_porians_exponents_follow_in_all_settings():
  rows = rows_of("porian_optimal_pairs.csv")
  assert len(PUBLISHED["porian"]) == 15
  for setting, wanted in PUBLISHED["porian"].items():
    own = [r for r in rows if r["config"] == setting and r["n_star"]]
    flops, n = column(own, "flops"), column(own, "n_star")
    plain = isoflop.line(flops, n)
    assert plain.exponent == pytest.approx(wanted["n_exponent_ols"], rel=1e-9)
    points = points_of(
      flops=flops, optimal_params=n, stderr=column(own, "n_star_std")
    )
    found = frontier.by_parabolas(points)["constants"]
    for name, key in (("a", "n_exponent_wls"), ("N_coefficient", "n_coef_wls")):
      assert found[name]["value"] == pytest.approx(wanted[key], rel=1e-8)
    assert found["a"]["low"] < wanted["n_exponent_wls"] < found["a"]["high"]


def surface(params, grid, shift=1.0, count=15, budgets=range(17, 22)):
  """Noise-free isoFLOP points around the true optimum."""
  law = laws.CHINCHILLA
  factor = float(grid.split("x")[0].removeprefix("+-"))
  parts = []
  for c in (10.0**k for k in budgets):
    best = fits.optimum_of(law, None)(law.theta(params)[None], c)[0][0]
    n = best * shift * np.geomspace(1 / factor, factor, count)
    parts.append((n, c / 6 / n, np.full(count, c)))
  n, d, c = map(np.concatenate, zip(*parts, strict=True))
  loss = loss_of(law, params, params=n, tokens=d)
  return points_of(params=n, tokens=d, flops=c, loss=loss)


def test_parabolas_have_the_known_bias_of_their_grid_and_no_other():
  known = json.loads((DATA / "approach2_bias_public.json").read_text())
  tried = 0
  for row in known["rows"]:
    if "centre" in row["grid"]:
      continue
    points = surface(row["params"], row["grid"])
    optima = isoflop.optima(points)
    assert all(o.good for o in optima) and len(optima) == 5
    d = isoflop.line(
      np.array([o.flops for o in optima]), np.array([o.tokens for o in optima])
    )
    assert d.exponent == pytest.approx(row["b_fit"], abs=1e-9)
    assert d.at(1e24) == pytest.approx(row["D_fit_1e24"], rel=1e-7)
    tried += 1
  assert tried == 12


def test_a_concave_budget_and_an_unbracketed_one_are_marked_and_do_not_count():
  points = surface(BESIROGLU, "+-4x", count=7)
  loss = points.columns["loss"]
  budgets = np.unique(points.columns["flops"])
  concave = points.columns["flops"] == budgets[0]
  loss[concave] = 9 - loss[concave]
  keep = (points.columns["flops"] != budgets[1]) | (
    np.arange(len(points)) % 7 > 4
  )
  found = frontier.by_parabolas(points.some(keep), resamples=20)
  by_budget = {round(np.log10(o["flops"])): o for o in found["optima"]}
  assert not by_budget[17]["good"] and "not convex" in by_budget[17]["why"]
  assert not by_budget[18]["good"]
  assert by_budget[19]["good"]
  assert found["constants"]["a"]["value"] == pytest.approx(
    0.36585 / (0.34781 + 0.36585), abs=0.01
  )
  assert sum("does not count" in w for w in found["warnings"]) == 2
  with pytest.raises(BadConfig, match="takes two"):
    frontier.by_parabolas(points.some(concave))


def test_the_envelope_of_curves_finds_the_growth_of_the_best_size():
  curves = []
  for n in np.geomspace(3e6, 3e9, 9):
    d = np.geomspace(2 * n, 400 * n, 40)
    loss = loss_of(laws.CHINCHILLA, BESIROGLU, params=np.full(40, n), tokens=d)
    curves.append((np.full(40, n), d, loss))
  n, d, loss = map(np.concatenate, zip(*curves, strict=True))
  found = frontier.by_envelope(
    points_of(params=n, tokens=d, loss=loss), resamples=6
  )
  assert found["constants"]["a"]["value"] == pytest.approx(0.5127, abs=0.02)
  assert any("no curve brackets it" in w for w in found["warnings"])


def test_too_few_points_or_a_size_that_never_moves_are_refused():
  points = chinchilla_points(5)
  with pytest.raises(BadConfig, match="5 different points are too few"):
    fits.parametric(points, laws.free(laws.CHINCHILLA))
  points = points_of(params=[1e8] * 9, tokens=np.geomspace(1e9, 1e11, 9),
                     loss=np.linspace(4, 3, 9))  # fmt: skip
  with pytest.raises(BadConfig, match="params is 1e.08 in every point.*--of="):
    fits.parametric(points, laws.free(laws.CHINCHILLA))
  with pytest.raises(BadConfig, match="did you mean 'alpha'"):
    laws.free(laws.CHINCHILLA, {"alpa": 1.0})
  with pytest.raises(BadConfig, match="both tied and fixed"):
    laws.free(laws.CHINCHILLA, {"alpha": 1.0}, ("alpha", "beta"))


def test_held_out_points_are_the_largest_or_those_asked_for():
  points = chinchilla_points(40)
  flops = points.columns["flops"]
  for text, wanted in {
    "": flops >= np.sort(flops)[-4],
    "5": flops >= np.sort(flops)[-5],
    "0.5": flops >= np.sort(flops)[-20],
    "flops>1e20": flops > 1e20,
    "0": flops < 0,
  }.items():
    assert (fits.held_out(points, text, "flops") == wanted).all(), text
  for bad in ("x", "-1", "2.5", "flps>1"):
    with pytest.raises(BadConfig, match="--holdout="):
      fits.held_out(points, bad, "flops")


def test_a_power_has_its_floor_and_kaplans_has_none():
  flops = np.geomspace(1e17, 1e21, 12)
  loss = 1.7 + 200 * flops**-0.12
  power = laws.power_of("flops")
  found = fits.parametric(
    points_of(flops=flops, loss=loss), laws.free(power), resamples=0
  )
  c = {k: v["value"] for k, v in found["constants"].items()}
  assert c == pytest.approx(dict(A=200, E=1.7, alpha=0.12), rel=1e-5)
  assert found["predictions"][1]["outside"] == ["flops"]
  kaplan = laws.kaplan_of("params")
  loss = loss_of(kaplan, dict(alpha_N=0.076, N_c=8.8e13), params=flops / 1e11)
  found = fits.parametric(
    points_of(params=flops / 1e11, loss=loss), laws.free(kaplan), resamples=0
  )
  assert found["constants"]["alpha_N"]["value"] == pytest.approx(0.076)


def test_without_a_bootstrap_intervals_are_those_of_few_points():
  """By t of as many degrees of freedom as points leave beside constants."""
  flops = np.array([1e17, 1e18, 1e19, 1e20])
  law = laws.kaplan_of("params")
  loss = loss_of(law, dict(alpha_N=0.076, N_c=8.8e13), params=flops / 1e11)
  noise = np.array([1.001, 0.999, 1.002, 0.998])
  points = points_of(params=flops / 1e11, loss=loss * noise)
  found = fits.parametric(points, laws.free(law), resamples=0, holdout="0")
  reach = stats.t.isf(0.025, 4 - 2)
  alpha, scale = (found["constants"][k] for k in ("alpha_N", "N_c"))
  half = (alpha["high"] - alpha["low"]) / 2
  assert half == pytest.approx(reach * alpha["stderr"])
  of_log = scale["stderr"] / scale["value"]
  assert math.log(scale["high"] / scale["value"]) == pytest.approx(
    reach * of_log
  )


@pytest.mark.slow
def test_planted_constants_lie_within_three_standard_errors():
  points = chinchilla_points(240, noise=0.005)
  found = fits.parametric(points, laws.free(laws.CHINCHILLA), resamples=400)
  for name, value in BESIROGLU.items():
    c = found["constants"][name]
    assert abs(c["value"] - value) < 3 * c["stderr"]
  a = found["derived"]["a"]
  assert a["low"] < a["value"] < a["high"]
  assert found["starts"]["agreed"] > 1000


@pytest.mark.slow
def test_repeated_data_has_a_fit_better_than_the_published_constants():
  rows = rows_of("data_constrained_182.csv")
  points = points_of(**{
    k: column(rows, k) for k in ("params", "tokens", "unique_tokens", "loss")
  })  # fmt: skip
  free = laws.free(laws.DATA_CONSTRAINED, tie=("alpha", "beta"))
  found = fits.parametric(points, free, resamples=20, holdout="0")
  constants = PUBLISHED["data_constrained"]["constants"]
  x = {k: points.columns[k] for k in ("params", "tokens", "unique_tokens")}
  objective = fitting.Objective(free, x, points.columns["loss"])
  theirs = laws.DATA_CONSTRAINED.theta(constants)
  first = [laws.DATA_CONSTRAINED.names.index(n) for n in free.names]
  assert found["objective"]["value"] < objective.total(theirs[first])
  assert found["constants"]["alpha"] == found["constants"]["beta"]
