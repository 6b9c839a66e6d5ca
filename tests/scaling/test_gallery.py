"""The page of what runs drew and wrote."""

import base64
import json
import re
import shutil

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import gallery
from aigc_jax.scaling.runs import open_runs

PNG = gallery.MAGIC + b"of step %d"


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / "one"
  samples = folder / "samples"
  samples.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"seed": 0, "steps": 200}))
  rows = [
    {"step": step, "seconds": 1.0, "eval/drawn/fid": fid}
    for step, fid in ((100, 31.5), (200, 2.25))
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)
  for step in (100, 200):
    (samples / f"{step}.drawn.png").write_bytes(PNG % step)
  (samples / "200.txt").write_text("<b>bold & written</b>")
  (samples / "notes.md").write_text("not shown")
  return folder


def test_every_sample_is_in_the_page_with_what_was_measured(run):
  text = gallery.page("A & B", open_runs([str(run)]))
  shown = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
  assert [base64.b64decode(x) for x in shown] == [PNG % 100, PNG % 200]
  assert "step 100, drawn/fid 31.5<" in text and "drawn/fid 2.25" in text
  assert "&lt;b&gt;bold &amp; written&lt;/b&gt;" in text
  assert "not shown" not in text and "A &amp; B" in text
  # Nothing is asked for from anywhere else.
  assert not re.search(r'(src|href)\s*=\s*"(?!data:)', text)
  assert "http" not in text


def test_what_is_no_picture_is_told_in_its_place(run):
  (run / "samples" / "100.drawn.png").write_bytes(b"<script>")
  text = gallery.page("Gallery", open_runs([str(run)]))
  assert "100.drawn.png: no PNG file" in text and "<script>" not in text
  assert base64.b64encode(PNG % 200).decode() in text


def test_of_many_steps_some_that_lie_evenly_are_shown(run, monkeypatch):
  monkeypatch.setattr(gallery, "MOST", 3)
  for step in range(300, 1001, 100):
    (run / "samples" / f"{step}.drawn.png").write_bytes(PNG % step)
  text = gallery.page("Gallery", open_runs([str(run)]))
  assert "3 of 10 steps" in text
  steps = re.findall(r'alt="drawn at step (\d+)"', text)
  assert steps[0] == "100" and steps[-1] == "1000" and len(steps) == 3


def test_samples_that_lie_elsewhere_are_not_shown(run, tmp_path):
  (run / "samples").rename(tmp_path / "elsewhere")
  (run / "samples").symlink_to(tmp_path / "elsewhere")
  assert not gallery.found_in(run / "samples")


def test_runs_without_samples_are_refused_with_a_way_out(run):
  for file in (run / "samples").iterdir():
    file.unlink()
  with pytest.raises(BadConfig, match="kind='images' or 'samples'"):
    gallery.page("Gallery", open_runs([str(run)]))


def test_a_run_without_samples_beside_one_with_is_told(run, tmp_path):
  shutil.copytree(run, tmp_path / "none")
  shutil.rmtree(tmp_path / "none" / "samples")
  page = gallery.page("Gallery", open_runs([str(run), str(tmp_path / "none")]))
  assert "Without samples: none." in page
  assert "Without" not in gallery.page("Gallery", open_runs([str(run)]))
