"""report curve: pictures that say which line is which, and of what."""

import dataclasses
import os

import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import curves, pictures, results
from aigc_jax.scaling.arms import arms_of
from aigc_jax.scaling.comparable import unlike_losses
from aigc_jax.scaling.runs import distinct, open_runs
from tests.scaling.made import made_run, power_loss
from tests.sweep import slow


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
  """Twelve runs of one folder, each with its own rate."""
  folder = tmp_path_factory.mktemp("runs") / "twelve"
  for i in range(12):
    rate = {"optim.learning_rate": 1e-3 * (i + 1)}
    made_run(folder / f"run{i:02d}", best=2 + 0.05 * i, config=rate)
  return open_runs([str(folder)])


def figure_of(runs, *metrics, **style):
  lines = curves.single(runs)
  figure = curves.picture(
    lines, metrics=metrics or ("train/loss",), style=curves.Style(**style)
  )
  figure.canvas.draw()
  return figure


def box(artist):
  return artist.get_window_extent()


def test_a_curve_is_a_picture_of_every_kind(twelve, tmp_path):
  for kind, start in {
    ".png": b"\x89PNG",
    ".pdf": b"%PDF",
    ".svg": b"<?xm",
  }.items():
    out = curves.draw(
      curves.single(twelve[:2]), tmp_path / f"x{kind}", metrics=["train/loss"]
    )
    assert out.read_bytes().startswith(start)
  assert len(list(tmp_path.iterdir())) == 3  # nothing is left aside


@pytest.mark.parametrize("count", [1, 7, 8, 12, 40, 100])
def test_each_run_has_a_colour_of_its_own_however_many(count):
  from matplotlib.colors import to_hex

  found = {to_hex(c) for c in pictures.colours(count)}
  assert len(found) == count and "#ffffff" not in found


def distilled(folder):
  """A student whose loss is more than nll, and the run that it is beside."""
  soft = {"objective": dict(kind="distill", soft=5.0, hard=2.0, chunk=None)}
  plain = {"objective": dict(kind="tokens", chunk=16)}
  for name, config in (("student", soft), ("plain", plain)):
    made_run(folder / name, config=config)
  return open_runs([str(folder / "student"), str(folder / "plain")])


def test_losses_of_unlike_objectives_are_not_drawn_as_one_quantity(tmp_path):
  runs = distilled(tmp_path)
  figure = figure_of(runs, "train/loss")
  assert "of each run's own objective" in figure.axes[0].get_ylabel()
  note = unlike_losses(runs, ["train/loss"])
  assert "student: distill, hard=2.0, soft=5.0" in note
  assert "eval/heldout/loss is, where that is nll" in note
  for alike in (runs[:1], [runs[1], *open_runs([str(tmp_path / "plain")])]):
    assert not unlike_losses(alike, ["train/loss"])
  held_out = figure_of(runs, "eval/heldout/loss")
  assert "objective" not in held_out.axes[0].get_ylabel()


def test_what_a_file_of_results_says_of_objectives_is_enough(tmp_path):
  runs = distilled(tmp_path)
  metrics = ["train/loss", "eval/heldout/loss"]
  text = results.lines_of(runs, {r.name: r.name for r in runs}, metrics)
  (tmp_path / "results.jsonl").write_text(text)
  again = open_runs([str(tmp_path / "results.jsonl")])
  assert unlike_losses(again, metrics) == unlike_losses(runs, metrics)


def test_a_zoom_that_shows_nothing_is_answered_with_one_that_does(tmp_path):
  made_run(tmp_path / "a")  # held out at a quarter of the way each time
  runs = open_runs([str(tmp_path / "a")])
  with pytest.raises(BadConfig, match="--zoom=") as refusal:
    figure_of(runs, "eval/heldout/loss", zoom=0.1)
  way = float(str(refusal.value).rpartition("--zoom=")[2].split()[0])
  assert way < 0.5
  figure_of(runs, "eval/heldout/loss", zoom=way)


def test_seeds_of_an_arm_that_are_drawn_by_themselves_share_its_colour(
  tmp_path,
):
  for rate in (1e-3, 1e-2):
    for seed in (0, 1):
      where = tmp_path / f"{rate}-{seed}"
      made_run(where, seed=seed, config={"optim.learning_rate": rate})
  lines = curves.seeds(arms_of(open_runs([str(tmp_path)])))
  figure = curves.picture(lines, metrics=["train/loss"], style=curves.Style())
  drawn = {x.get_label(): x for x in figure.axes[0].get_lines()}
  looks = [(x.get_color(), x.get_linestyle()) for x in drawn.values()]
  assert len(set(looks)) == len(looks) == 4
  assert len({color for color, _ in looks}) == 2


@pytest.mark.parametrize(
  ("count", "name"),
  [
    (2, ""),
    (12, ""),
    slow((40, "")),
    slow((12, "qk_norm-learning_rate=0.00390625-seed0-03022")),
    (40, "qk_norm-learning_rate=0.00390625-seed0-03022e01"),
    (3, "W" * 44),
  ],
)
def test_the_legend_covers_no_axes_and_names_every_run(count, name, twelve):
  lines = curves.single((list(twelve) * 4)[:count])
  lines = [dataclasses.replace(x, label=name or x.label) for x in lines]
  figure = curves.picture(lines, metrics=["train/loss"], style=curves.Style())
  figure.canvas.draw()
  (legend,) = figure.legends
  assert not box(legend).overlaps(figure.axes[0].get_tightbbox())
  assert len(legend.get_texts()) == count
  whole = figure.bbox
  assert whole.x0 <= box(legend).x0 and box(legend).x1 <= whole.x1
  assert whole.y0 <= box(legend).y0 and box(legend).y1 <= whole.y1


def test_runs_of_equal_names_are_told_apart_by_their_folders():
  paths = [("r", "a", "0"), ("r", "b", "0"), ("r", "b", "1")]
  assert distinct(paths) == ["a/0", "b/0", "1"]


def test_a_metric_of_another_quantity_has_the_axis_on_the_right(twelve):
  figure = figure_of(twelve[:2], "train/loss", "optim/learning_rate")
  left, right = figure.axes
  assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "learning rate")
  assert right.yaxis.get_label_position() == "right"
  colours = [
    [line.get_color() for line in a.get_lines()] for a in (left, right)
  ]
  assert colours[0] == colours[1] and len(set(colours[0])) == 2
  with pytest.raises(BadConfig, match="3 quantities"):
    figure_of(
      twelve[:1], "train/loss", "optim/learning_rate", "data/batch_hash"
    )


def test_losses_of_training_and_held_out_data_share_an_axis(twelve):
  figure = figure_of(twelve[:1], "train/loss", "eval/heldout/loss")
  assert len(figure.axes) == 1
  assert [t.get_text() for t in figure.legends[0].get_texts()] == [
    "train/loss",
    "eval/heldout/loss",
  ]


@pytest.mark.parametrize(
  "value, text",
  [(400_000, "400k"), (1.2e6, "1.2M"), (3e9, "3B"), (2e12, "2T"), (0, "0"),
   (999, "999"), (0.5, "0.5")],
)  # fmt: skip
def test_numbers_on_an_axis_are_short(value, text):
  assert pictures.short(value) == text


def test_flops_and_seconds_read_as_people_say_them():
  assert [pictures.power(v) for v in (0, 250, 1e15, 2.5e21)] == [
    "0", "250", "1e15", "2.5e21",
  ]  # fmt: skip
  assert [pictures.duration(v) for v in (0, 30, 300, 7200, 172_800)] == [
    "0", "30 s", "5 min", "2 h", "2 d",
  ]  # fmt: skip


def test_a_title_logarithms_and_a_running_mean(twelve):
  figure = figure_of(twelve[:2], title="Peak rates", log=("x", "y"), smooth=5)
  axes = figure.axes[0]
  assert axes.get_title("left") == "Peak rates"
  assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
  # The title says no more of what it is.
  assert axes.get_ylabel() == "train/loss (running mean of 5 rows)"


def test_what_is_held_out_is_not_said_to_be_smoothed(twelve):
  figure = figure_of(twelve[:1], "train/loss", "eval/heldout/loss", smooth=5)
  label = figure.axes[0].get_ylabel()
  assert label == "loss (of training a running mean of 5 rows)"


@pytest.mark.parametrize("rows", [2, 3, 10, 11])
def test_a_running_mean_says_of_how_many_rows_it_is(twelve, rows):
  figure = figure_of(twelve[:1], smooth=rows)
  label = figure.axes[0].get_ylabel()
  curves.pictures.plots().close(figure)
  one = (np.arange(41) == 20).astype(float)
  of = np.count_nonzero(curves.running_mean(one, rows))
  assert f"running mean of {of} rows" in label


def test_a_running_mean_keeps_straight_lines_and_gaps():
  y = np.arange(20.0)
  assert np.allclose(curves.running_mean(y, 7), y)
  y[5] = np.nan
  smooth = curves.running_mean(y, 7)
  assert np.isnan(smooth[5]) and np.isfinite(np.delete(smooth, 5)).all()
  assert smooth[6] == pytest.approx(np.nanmean(y[3:10]))


def test_an_inset_of_the_end_lies_where_no_curve_is(twelve, tmp_path):
  rising = made_run(tmp_path / "rising", loss=lambda s: float(s))
  flat = made_run(tmp_path / "flat", loss=lambda s: 2.0 + (s % 2) * 1.0)
  for runs in (twelve[:3], open_runs([str(rising)]), open_runs([str(flat)])):
    figure = figure_of(runs, zoom=0.25)
    axes = figure.axes[0]
    (inset,) = axes.child_axes
    around = box(inset)
    for line in axes.get_lines():
      xy = axes.transData.transform(np.column_stack(line.get_data()))
      assert not any(around.contains(*p) for p in xy)
    low, high = inset.get_xlim()
    assert low >= 0.7 * high


def test_an_inset_holds_the_bands_of_its_curves(tmp_path):
  for seed, scale in enumerate((1.0, 3.0, 5.0)):
    made_run(
      tmp_path / f"s{seed}", seed=seed, loss=lambda s, k=scale: k + 0.001 * s
    )
  line = curves.Line("arm", tuple(open_runs([str(tmp_path)])))
  figure = curves.picture(
    [line], metrics=("train/loss",), style=curves.Style(zoom=0.25)
  )
  figure.canvas.draw()
  (inset,) = figure.axes[0].child_axes
  (bottom, top), (start, _) = inset.get_ylim(), inset.get_xlim()
  (band,) = inset.collections
  points = np.concatenate([path.vertices for path in band.get_paths()])
  shown = points[points[:, 0] >= start][:, 1]
  assert len(shown) and bottom <= shown.min() and shown.max() <= top


def test_where_a_run_broke_off_stands_a_cross_and_null_is_a_gap(tmp_path):
  path = made_run(
    tmp_path / "a", loss=lambda s: power_loss(s) if s < 20 and s != 7 else None
  )
  (run,) = open_runs([str(path)])
  assert run.status == "diverged"
  line, cross = figure_of([run]).axes[0].get_lines()
  assert np.isnan(line.get_ydata()[6]) and np.isnan(line.get_ydata()[-1])
  assert cross.get_marker() == "x" and cross.get_xdata()[0] == 8 * 19


def test_a_loss_of_nothing_is_drawn_and_not_left_out(tmp_path):
  path = made_run(tmp_path / "a", loss=lambda s: 0.0)
  (run,) = open_runs([str(path)])
  assert (run.series("train/loss", "step")[1] == 0).all()
  assert len(run.series("train/loss", "step")[0]) == 40
  with pytest.raises(BadConfig, match="nowhere above 0"):
    figure_of([run], log=("y",))


def test_seeds_of_an_arm_are_their_mean_in_a_band(tmp_path):
  for arm, qk_norm in (("a", False), ("b", True)):
    for seed in range(3):
      made_run(
        tmp_path / f"{arm}{seed}", seed=seed, config={"model.qk_norm": qk_norm}
      )
  arms = arms_of(open_runs([str(tmp_path)]))
  assert [a.name for a in arms] == ["qk_norm=false", "qk_norm=true"]
  assert [a.seeds for a in arms] == [[0, 1, 2]] * 2
  line = curves.Line(arms[0].name, arms[0].runs)
  curve = curves.averaged(line, "eval/heldout/loss", curves.Style())
  assert curve.mean[-1] == pytest.approx(power_loss(40) + 0.01)
  assert curve.sd[-1] == pytest.approx(0.01)
  for against in ("tokens", "seconds"):
    style = curves.Style(against=against)
    figure = curves.picture([line], metrics=["train/loss"], style=style)
    assert len(figure.axes[0].collections) == 1


def test_what_is_not_there_is_named(twelve, tmp_path):
  for word, message in {
    "nowhere": "nowhere: there is no such folder",
    str(tmp_path): "holds no run",
    __file__: "is a file",
  }.items():
    with pytest.raises(BadConfig, match=message):
      open_runs([word])
  path = str(twelve[0].path)
  with pytest.raises(BadConfig, match="named twice"):
    open_runs([path, f"{path}/"])
  with pytest.raises(BadConfig, match="did you mean 'train/loss'"):
    figure_of(twelve[:1], "train/los")
  with pytest.raises(BadConfig, match="does not count 'examples'"):
    figure_of(twelve[:1], against="examples")
  for given, such in {
    "x.txt": "x.png", ".": "x.png", "..": r"\.\./x.png", "/": "/x.png",
  }.items():  # fmt: skip
    with pytest.raises(BadConfig, match=f"such as {such}"):
      pictures.check_kind(given)
  with pytest.raises(BadConfig, match="expected x, y"):
    curves.Style(log=("z",))
  with pytest.raises(BadConfig, match="did you mean 'optim.learning_rate'"):
    arms_of(twelve, ["optim.learning_rat"])


def test_a_curve_of_one_row_is_seen():
  axes = pictures.plots().figure().subplots()
  for rows, mark in ((1, "o"), (2, "None")):
    curve = curves.Curve(np.arange(rows), np.ones(rows), None, (), False)
    handle = curves._plot(axes, curve, {"color": "k"})
    assert handle.get_marker() == mark


def test_a_picture_goes_where_the_user_says_and_nowhere_else(tmp_path):
  elsewhere, out = tmp_path / "elsewhere", tmp_path / "x.png"
  elsewhere.write_text("precious")
  planted = tmp_path / f".x.{os.getpid()}.png"
  planted.symlink_to(elsewhere)
  (tmp_path / "target").touch()
  out.symlink_to(tmp_path / "target")
  pictures.save(pictures.plots().figure(figsize=(1, 1)), out)
  assert elsewhere.read_text() == "precious" and out.is_symlink()
  assert (tmp_path / "target").read_bytes().startswith(b"\x89PNG")
