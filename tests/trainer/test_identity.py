"""A run, a copy of it and what was set back are told apart; a move is none."""

import json
import os
import shutil

import jax.numpy as jnp
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.trainer import identity
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity

RUN = Identity("0123456789abcdef")
ABSTRACT = {"params": {"w": jnp.arange(3.0)}}


def saved(workdir, run: Identity) -> Checkpoints:
  return Checkpoints(
    workdir / "checkpoints", every_steps=5, keep=9, keep_every_steps=None,
    run=run,
  )  # fmt: skip


def train(workdir, run: Identity, start: int, *steps: int) -> Identity:
  """Goes on from `start`, saves these steps, and notes it in run.json."""
  ours = run.going_on(start, workdir)
  (workdir / "run.json").write_text(json.dumps({"run": ours.as_json()}))
  checkpoints = saved(workdir, ours)
  for step in steps:
    checkpoints.commit(step, {"params": {"w": jnp.arange(3.0) + step}}, {})
  return ours


def noted(workdir) -> Identity:
  return identity.of(json.loads((workdir / "run.json").read_text()))


@pytest.fixture
def one(tmp_path):
  (tmp_path / "one").mkdir()
  train(tmp_path / "one", RUN, 0, 5, 10)
  return tmp_path / "one"


def restored(workdir) -> int:
  return saved(workdir, noted(workdir)).restore(ABSTRACT)[1]["step"]


def test_what_is_noted_is_read_again(one):
  assert noted(one).as_json() == noted(one).as_json()
  assert noted(one).place == (str(one), os.stat(one).st_ino)


def test_a_copy_and_its_original_own_what_was_saved_before_they_parted(one):
  two = one.with_name("two")
  shutil.copytree(one, two)
  train(one, noted(one), 10, 15)
  train(two, noted(two), 10, 15)
  assert restored(one) == restored(two) == 15
  for here, there in ((one, two), (two, one)):
    shutil.copytree(there / "checkpoints/15", here / "checkpoints/16")
    path = here / "checkpoints/15/manifest.json"
    assert noted(here).owns(json.loads(path.read_text()))
    path = there / "checkpoints/15/manifest.json"
    assert not noted(here).owns(json.loads(path.read_text()))
    path = there / "checkpoints/10/manifest.json"
    assert noted(here).owns(json.loads(path.read_text()))


def test_what_an_original_saves_while_it_is_copied_is_not_the_copys(one):
  """The original never went on: its leg is in both, up to another step."""
  two = one.with_name("two")
  shutil.copytree(one, two)
  saved(one, noted(one)).commit(15, ABSTRACT, {})
  train(two, noted(two), 10)
  shutil.copytree(one / "checkpoints/15", two / "checkpoints/15")
  with pytest.raises(BadConfig, match="15 was saved by another copy of this"):
    restored(two)
  assert restored(one) == 15


def test_what_was_set_back_from_is_not_gone_on_from_by_accident(one):
  shutil.move(one / "checkpoints/10", one / "aside")
  train(one, noted(one), 5, 7)
  shutil.move(one / "aside", one / "checkpoints/10")
  with pytest.raises(BadConfig, match="another copy.*set back.*allow_change"):
    restored(one)


def test_a_copy_is_noticed_and_a_move_is_not(one):
  two = one.with_name("two")
  assert identity.original_of(one, noted(one)) == ""
  shutil.copytree(one, two)
  assert identity.original_of(two, noted(two)) == str(one)
  shutil.rmtree(one)
  assert identity.original_of(two, noted(two)) == ""
  train(two, noted(two), 10)
  moved = two.rename(two.with_name("three"))
  assert identity.original_of(moved, noted(moved)) == ""
  link = one.with_name("link")
  link.symlink_to(moved)
  assert identity.original_of(link, noted(moved)) == ""


def test_another_run_where_a_moved_one_was_is_not_its_original(one):
  two = one.rename(one.with_name("two"))
  one.mkdir()
  train(one, Identity("f" * 16), 0)
  assert identity.original_of(two, noted(two)) == ""


def test_checkpoints_of_before_there_were_legs_are_the_runs_own(one):
  assert noted(one).owns({"run": RUN.id, "step": 99})


def test_a_run_json_of_before_there_were_legs_owns_no_later_leg(one):
  content = json.loads((one / "checkpoints/10/manifest.json").read_text())
  assert not RUN.owns(content)


@pytest.mark.parametrize(
  "legs", ["x", [1], [["a"]], [["a", "b"]], [["a", -1]], [[None, 3]], {"a": 3}]
)
def test_legs_that_make_no_sense_are_refused(legs):
  with pytest.raises(BadConfig, match="put back the run.json"):
    identity.of({"run": {"id": "a", "legs": legs}})


@pytest.mark.parametrize("place", ["x", {}, {"path": "a", "inode": "b"}, []])
def test_a_place_that_makes_no_sense_is_refused(place):
  with pytest.raises(BadConfig, match="put back the run.json"):
    identity.of({"run": {"id": "a", "place": place}})
