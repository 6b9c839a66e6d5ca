"""Keys that say how a step is computed may change, or be new, on resume."""

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.trainer import changes

OLD = {"steps": 9, "model": {"dim": 8}, "optim": {"b1": 0.9}}
NEW = OLD | {"cast_once": True, "model": {"dim": 8, "fuse_projections": True}}

KINDS = ("plain", "fp8")


def test_a_run_from_before_a_key_of_computing_was_there_goes_on():
  found = changes.changes(OLD, NEW)
  assert [str(x) for x in changes.check(found, (), allow_data=False)] == [
    "cast_once: None -> True",
    "model.fuse_projections: None -> True",
  ]


def test_a_key_of_learning_is_asked_about():
  found = changes.changes(NEW, NEW | {"optim": {"b1": 0.8}})
  with pytest.raises(BadConfig, match=r"--allow_change=optim\.b1"):
    changes.check(found, (), allow_data=False)
  assert changes.check(found, ("optim.b1",), allow_data=False) == found


def test_products_in_8_bits_are_asked_about_and_plain_ones_are_as_ever():
  plain, small = ({**OLD, "model": {"dim": 8, "products": p}} for p in KINDS)
  assert changes.changes(OLD, plain) == changes.changes(plain, OLD) == []
  found = changes.changes(OLD, small)
  assert [str(x) for x in found] == ["model.products: 'plain' -> 'fp8'"]
  with pytest.raises(BadConfig, match=r"--allow_change=model\.products"):
    changes.check(found, (), allow_data=False)
