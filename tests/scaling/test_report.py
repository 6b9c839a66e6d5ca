"""The command: tables, pages and references as a user gets them."""

import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from aigc_jax import report
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.scaling.reference import against, read_reference, reference_of
from aigc_jax.scaling.runs import open_runs
from aigc_jax.scaling.sweeps import ledger
from tests import commands
from tests.scaling.made import made_run, power_loss

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture
def call(monkeypatch):
  """report's main with flags as on a command line."""

  def run(*words):
    with monkeypatch.context() as patch:
      mine = commands.own_flags(patch)
      report.define_flags()
      return report.main(mine(["report", *words])[1:])

  return run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Two arms of three seeds."""
  folder = tmp_path_factory.mktemp("two")
  for qk_norm in (False, True):
    for seed in range(3):
      made_run(
        folder / f"{'qk' if qk_norm else 'base'}{seed}", seed=seed,
        best=2.0 - 0.05 * qk_norm, config={"model.qk_norm": qk_norm},
      )  # fmt: skip
  return folder


def test_a_table_is_printed_and_written_in_the_form_its_name_says(
  call, two, tmp_path, capsys
):
  for kind in ("md", "json", "html", "png"):
    out = tmp_path / f"x.{kind}"
    assert call("table", str(two), f"--out={out}") == 0 and out.stat().st_size
  assert json.loads((tmp_path / "x.json").read_text())["baseline"]
  printed = capsys.readouterr().out
  assert "### Against qk_norm=false" in printed
  assert (tmp_path / "x.md").read_text().strip() in printed
  with pytest.raises(BadConfig, match="--out ending in '.txt'"):
    call("table", str(two), f"--out={tmp_path / 'x.txt'}")
  with pytest.raises(StorageFailure, match="there is no folder"):
    call("table", str(two), f"--out={tmp_path / 'nowhere' / 'x.md'}")
  with pytest.raises(BadConfig, match="takes one or more"):
    call("table")


def test_the_page_holds_everything_and_asks_for_nothing(call, two, tmp_path):
  out = tmp_path / "r.html"
  assert call("html", str(two), f"--out={out}", "--title=a<b") == 0
  text = out.read_text()
  for heading in ("Results", "Curves", "What differs", "Where it comes from"):
    assert f"<h2>{heading}</h2>" in text
  assert "<h1>a&lt;b</h1>" in text and "qk_norm=true" in text
  for source in re.findall(r'(?:src|href)=["\']?([^"\'> ]*)', text):
    assert source.startswith("data:image/svg+xml;base64,")
  assert "<script" not in text and "http" not in re.sub(r"base64,\S+", "", text)


def test_the_page_of_what_cannot_be_compared_says_why(call, tmp_path):
  made_run(tmp_path / "a")
  other = {"heldout_fingerprints": {"evaluate.heldout": "h1"}}
  made_run(tmp_path / "b", about=other)
  out = tmp_path / "r.html"
  assert call("html", str(tmp_path), "--by=run", f"--out={out}") == 0
  assert "different held-out data" in out.read_text()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_the_page_with_all_its_pictures(call, two, tmp_path):
  out = tmp_path / "r.html"
  call("html", str(two), f"--out={out}")
  count = out.read_text().count("<img ")
  probe = """<script>addEventListener("load", () => {
    const images = [...document.images];
    document.title = JSON.stringify({
      good: images.filter(i => i.complete && i.naturalWidth > 100).length,
      rows: document.querySelectorAll("tbody tr").length,
      wide: document.documentElement.scrollWidth - innerWidth})})</script>"""
  page = tmp_path / "probed.html"
  page.write_text(out.read_text().replace("</body>", f"{probe}</body>"))
  words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
  profile = f"--user-data-dir={tmp_path / 'profile'}"
  found = subprocess.run(
    [*words, profile, "--window-size=1200,900", "--dump-dom", page.as_uri()],
    capture_output=True, text=True, timeout=600, check=True,
  )  # fmt: skip
  title = re.search(r"<title>(\{.*?\})</title>", found.stdout)
  seen = json.loads(title[1])
  assert seen["good"] == count >= 3
  assert seen["rows"] >= 2 + 1 + 1 + 6 + 6
  assert seen["wide"] <= 0  # nothing runs out of the window


def reference(tmp_path, call, seeds=4):
  for seed in range(seeds):
    made_run(tmp_path / "seeds" / str(seed), seed=seed, steps=100,
             config={"steps": 100})  # fmt: skip
  out = tmp_path / "reference.json"
  metrics = "--metrics=train/loss,eval/heldout/loss"
  assert (
    call("reference", str(tmp_path / "seeds"), metrics, f"--out={out}") == 0
  )
  return out


def test_another_seed_lies_within_the_band_and_a_worse_run_leaves_it(
  call, tmp_path, capsys
):
  out = reference(tmp_path, call)
  known = json.loads(out.read_text())["metrics"]["train/loss"]
  assert known["n"] == 4 and len(known["step"]) == 100
  noise = [np.random.default_rng(s).normal(size=101)[100] for s in range(4)]
  last = power_loss(100) + 0.01 * np.array(noise)
  assert known["mean"][-1] == pytest.approx(last.mean())
  assert known["sigma"][-1] == pytest.approx(last.std(ddof=1))
  more = dict(steps=100, config={"steps": 100})
  # The held-out losses here rise with the seed; those of seed 1 are its mean.
  good = made_run(tmp_path / "like", seed=1, **more)
  assert call("compare", str(good), str(out)) == 0
  assert "within" in capsys.readouterr().out
  bad = made_run(
    tmp_path / "bad", seed=1,
    loss=lambda s: power_loss(s) + 0.2 * (s > 60), **more,
  )  # fmt: skip
  assert call("compare", str(bad), str(out)) == 1
  text = capsys.readouterr().out
  assert "LEAVES the band" in text and "steps 61 to 100" in text
  assert call("compare", str(bad), str(out), "--json") == 1
  found = json.loads(capsys.readouterr().out)
  assert found[0]["outside"][-1] == [61, 100] and found[0]["left"]


def test_a_loss_that_is_no_number_is_outside(call, tmp_path):
  known = read_reference(reference(tmp_path, call))
  path = made_run(
    tmp_path / "nan",
    steps=100,
    loss=lambda s: None if s > 90 else power_loss(s),
  )
  (run,) = open_runs([str(path)])
  assert against(run, known)[0].left


def test_what_is_no_reference_is_refused(call, two, tmp_path):
  (tmp_path / "x.json").write_text('{"metrics": {"train/loss": {"n": 1}}}')
  with pytest.raises(BadData, match="holds no reference"):
    call("compare", str(two / "qk0"), str(tmp_path / "x.json"))
  with pytest.raises(BadConfig, match="no such file"):
    call("compare", str(two / "qk0"), str(tmp_path / "y.json"))
  with pytest.raises(BadConfig, match="2 arms") as told:
    call("reference", str(two), f"--out={tmp_path / 'r.json'}")
  way_out = shlex.split(str(told.value).partition("aigc_jax.report ")[2])
  assert call(*way_out) == 0 and (tmp_path / "r.json").is_file()
  with pytest.raises(BadConfig, match="different seeds"):
    reference_of(open_runs([str(two / "qk0")]), ["train/loss"])


@pytest.mark.parametrize(
  ("words", "why"),
  [
    (["table", "--smooth=5"], "--smooth is of `report curve`, "),
    (["table", "--title=x"], "--title is of"),
    (["table", "--json"], "--json is of `report diff`, `report compare`"),
    (["curve", "--metric=x"], "leave it out, or say --metrics=x"),
    (["curve", "--baseline=x"], "--baseline is of `report table`"),
    (["curve", "--last=3"], "--last is of `report soup`"),
    (["diff", "--metrics=x"], "--metrics is of"),
    (["compare", "--at=step:3"], "--at is of"),
    (["soup", "--by=run"], "--by is of"),
    (["gallery", "--zoom=0.2"], "--zoom is of"),
    (["table", "--margin=-1"], "--margin=-1.0: expected a difference above 0"),
    (["table", "--margin=nan"], "--margin=nan: expected a difference above 0"),
    (["curve", "--metrics="], "--metrics=: expected names of metrics"),
    (["reference", "--metrics="], "--metrics names nothing"),
  ],
)  # fmt: skip
def test_a_flag_is_read_or_refused(
  call, two, tmp_path, monkeypatch, words, why
):
  monkeypatch.chdir(tmp_path)
  where = str(two)
  by = ["--by=model.dim"] * (words[0] in ("curve", "reference"))
  with pytest.raises(BadConfig) as refusal:
    call(words[0], where, *by, *words[1:])
  assert why in str(refusal.value)


def test_a_name_with_dollars_is_text_and_no_formula(call, tmp_path):
  """matplotlib would read a formula there, and fail on what is none."""
  for seed in range(2):
    made_run(tmp_path / "runs" / f"$\\frac${seed}", seed=seed)
  out = tmp_path / "x.svg"
  words = (f"--out={out}", "--by=run", "--log=y", r"--title=of $\frac{$")
  assert call("curve", str(tmp_path / "runs"), *words) == 0
  assert r"of $\frac{$" in out.read_text()
  out = tmp_path / "y.svg"
  assert call("table", str(tmp_path / "runs"), f"--out={out}", "--by=run") == 0


def test_a_picture_of_more_arms_than_fit_is_refused_by_its_size(
  call, tmp_path, monkeypatch
):
  rows = [f"a{i},{s},{i + s}" for i in range(4) for s in range(2)]
  csv = tmp_path / "x.csv"
  csv.write_text("\n".join(["arm,seed,eval/heldout/loss", *rows]) + "\n")
  monkeypatch.setattr(report.pictures, "MOST_PIXELS", 700)
  with pytest.raises(BadConfig, match="pixels: name fewer"):
    call("table", str(csv), f"--out={tmp_path / 'x.png'}")


def test_a_home_folder_is_put_in_full(call, tmp_path, monkeypatch, capsys):
  """No shell does it in a word that begins with --, or in quotes."""
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in "ab":
    made_run(tmp_path / name)
  assert call("diff", "~/a", "~/b") == 0
  assert "equal bit for bit" in capsys.readouterr().out
  (tmp_path / "a" / ledger.INDEX).write_text("{}")
  assert ledger.is_sweep("~/a") and not ledger.is_sweep("~/b")
