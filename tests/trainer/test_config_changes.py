"""Keys that say how a step is computed may change, or be new, on resume."""

import jax
import pytest
from flax import linen as nn

from aigc_jax.errors import BadConfig
from aigc_jax.hf.settings import LATER
from aigc_jax.presets import skeleton
from aigc_jax.trainer import changes
from tests import kinds

OLD = {"steps": 9, "model": {"dim": 8}, "optim": {"b1": 0.9}}
NEW = OLD | {"compute": {"cast_once": True, "fuse_projections": True}}

KINDS = ("plain", "fp8")


def test_a_run_from_before_a_key_of_computing_was_there_goes_on():
  found = changes.changes(OLD, NEW)
  assert [str(x) for x in changes.check(found, (), allow_data=False)] == [
    "compute.cast_once: None -> True",
    "compute.fuse_projections: None -> True",
  ]


def test_a_run_from_before_a_part_of_the_decoder_was_there_goes_on():
  model = skeleton().model.to_dict()
  model |= {k: list(v) for k, v in model.items() if isinstance(v, tuple)}
  old = {k: v for k, v in model.items() if k not in LATER}
  assert LATER.keys() <= model.keys()
  assert changes.changes({"model": old}, {"model": model}) == []
  found = changes.changes({"model": old}, {"model": model | {"parallel": True}})
  assert [x.key for x in found] == ["model.parallel"]


def test_a_section_that_was_empty_differs_in_its_keys_alone():
  old, new = OLD | {"frozen": {}}, OLD | {"frozen": {"teacher": "runs/a"}}
  there, back = changes.changes(old, new), changes.changes(new, old)
  assert list(map(str, there)) == ["frozen.teacher: None -> 'runs/a'"]
  assert list(map(str, back)) == ["frozen.teacher: 'runs/a' -> None"]


def test_a_key_of_learning_is_asked_about():
  found = changes.changes(NEW, NEW | {"optim": {"b1": 0.8}})
  with pytest.raises(BadConfig, match=r"--allow_change=optim\.b1"):
    changes.check(found, (), allow_data=False)
  assert changes.check(found, ("optim.b1",), allow_data=False) == found


def test_products_in_8_bits_are_asked_about_and_plain_ones_are_as_ever():
  plain, small = ({**OLD, "compute": {"products": p}} for p in KINDS)
  assert changes.changes(OLD, plain) == changes.changes(plain, OLD) == []
  found = changes.changes(OLD, small)
  assert [str(x) for x in found] == ["compute.products: 'plain' -> 'fp8'"]
  with pytest.raises(BadConfig, match=r"--allow_change=compute\.products"):
    changes.check(found, (), allow_data=False)


def test_a_total_of_before_is_the_total_of_now():
  old = OLD | {"steps": 12, "total_tokens": 768}
  new = OLD | {"steps": None, "total_tokens": 768, "total_flops": None}
  assert changes.changes(old, new) == []
  assert changes.changes(OLD | {"total_tokens": 0}, OLD) == []
  (found,) = changes.changes(old, new | {"total_tokens": 800})
  assert str(found) == "total_tokens: 768 -> 800"


def source(path: str, **more) -> dict:
  return {"kind": "text", "path": path, "weight": 1.0} | more


def test_data_that_lies_elsewhere_is_compared_and_not_refused():
  old = {"data": {"path": "a", "sources": [source("x"), source("y")]}}
  new = {"data": {"path": "/b", "sources": [source("/x"), source("/y")]}}
  found = changes.changes(old, new)
  assert len(changes.check(found, (), allow_data=False)) == 2
  old["data"] |= {"validation_path": "v", "tokenizer": "hf:t"}
  new["data"] |= {"validation_path": "./v", "tokenizer": "/x/t.model"}
  old["frozen"], new["frozen"] = {"vae": "runs/v"}, {"vae": "/runs/v"}
  found = changes.changes(old, new)
  assert len(changes.check(found, (), allow_data=False)) == 5
  for other in (
    {"path": "", "sources": old["data"]["sources"]},
    {"path": "a", "sources": [source("x"), source("y", weight=2.0)]},
    {"path": "a", "sources": [source("x")]},
    {"validation_path": None},
    {"tokenizer": "bytes"},
  ):
    found = changes.changes(old, new | {"data": new["data"] | other})
    with pytest.raises(BadConfig, match="--allow_data_change"):
      changes.check(found, (), allow_data=False)


FAMILIES = [
  ("dit of captions", "channels", 3), ("vq", "codes", 13),
  ("vq", "widths", (12,)), ("whisper", "bins", 24),
  ("clip", "image_layers", 3), ("clip", "text_mlp_dim", 48),
  ("clip", "embed_dim", 24), ("encoder", "types", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), FAMILIES)
def test_a_key_with_which_a_state_does_not_fit_is_no_matter_of_allowing(
  name, key, value
):
  def state(**other):
    model = kinds.build(name, **other)
    made = jax.eval_shape(model.init, jax.random.key(0), model.example())
    return jax.tree.map(lambda x: x.shape, nn.unbox(made))

  assert state() != state(**{key: value})
  for where in ("model", "model.parts.part"):
    change = changes.Change(f"{where}.{key}", "old", "new")
    with pytest.raises(BadConfig, match="state does not fit"):
      changes.check([change], (change.key,), allow_data=False)
