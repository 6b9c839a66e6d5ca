"""How a model is computed is one section, also where it stood in others."""

import copy
import json

import jax
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.models import COMPUTE, MODELS
from aigc_jax.presets import skeleton
from aigc_jax.run import compute, overrides
from aigc_jax.signature import EMPTY, keys_of
from aigc_jax.trainer import changes
from configs import gan, quickstart
from tests.golden import written

PRESETS = (
  "quickstart", "gan:tiny", "vq:tiny", "dalle:tiny", "distilbert:base",
  "resnet:r18", "whisper:tiny", "siglip:digits", "dit:tiny", "t5:small",
)  # fmt: skip


def of_before(config: dict) -> dict:
  """A config as it was written before there was a section compute."""
  old = copy.deepcopy(config)
  how = old.pop("compute")
  old |= {key: how[key] for key in compute.STEP}
  sections = old["model"].get("parts", {"": old["model"]}).values()
  for section in sections:
    taken = keys_of(MODELS[section["kind"]])
    section |= {key: how[key] for key in COMPUTE if key in taken}
  return old


def test_every_key_has_a_type_and_one_default_for_all_families():
  assert {*skeleton().compute} == {*compute.KEYS}
  assert {*COMPUTE, *compute.STEP} == {*compute.KEYS}
  assert not {*COMPUTE} & {*skeleton().model}
  for kind, make in MODELS.items():
    for key in COMPUTE:
      own = keys_of(make)[key].default if key in keys_of(make) else EMPTY
      assert own in (EMPTY, compute.defaults()[key]), (kind, key)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_of_before_is_read_as_the_one_it_was(name, tmp_path):
  today = run.read(written.config_of(name))
  old = of_before(today)
  assert "compute" not in old and "remat" not in today["model"]
  assert run.read(old) == today
  (tmp_path / "config.json").write_text(json.dumps(old))
  assert run.config_in(tmp_path) == today
  assert changes.changes(run.config_in(tmp_path), today) == []


def test_parts_that_were_computed_otherwise_still_are():
  today = run.read(written.config_of("dalle:tiny"))
  old = of_before(today)
  old["model"]["parts"]["prior"] |= {"dtype": "bfloat16", "remat": "full"}
  found = run.read(old)
  # What not all parts have alike stays with the part that has it otherwise.
  kept = found["model"]["parts"]["prior"]
  assert (kept["remat"], kept["dtype"]) == ("full", "bfloat16")
  assert found["compute"]["remat"] == "none"
  assert found["compute"]["dtype"] == "float32"
  parts = run.model_of(found).parts
  assert parts["prior"].model.operand_dtype == "bfloat16"
  assert parts["vq"].model.operand_dtype == "float32"
  both = run.model_of(compute.changed(found, dtype="bfloat16")).parts
  assert both["vq"].model.operand_dtype == "bfloat16"


def test_parts_that_say_nothing_had_the_default_before():
  old = of_before(run.read(written.config_of("dalle:tiny")))
  del old["model"]["parts"]["vq"]["dtype"]
  old["model"]["parts"]["prior"]["dtype"] = "bfloat16"
  parts = run.model_of(run.read(old)).parts
  assert parts["vq"].model.operand_dtype == "float32"


@pytest.mark.parametrize(
  ("key", "value"),
  [("remat", "full"), ("unroll", None), ("kernel", "xla"), ("products", "fp8"),
   ("fuse_projections", False), ("embed_gradient", "sorted")],
)  # fmt: skip
def test_a_key_that_nothing_takes_is_refused_by_name(key, value):
  config = gan.get_config("tiny,digits")
  usual = config.compute[key]
  config.compute[key] = value
  with pytest.raises(BadConfig) as error:
    run.read(config)
  assert f"compute.{key}={value!r}" in str(error.value)
  assert f"--config.compute.{key}={usual}" in str(error.value)
  config.compute[key] = usual
  run.read(config)


def test_a_key_that_one_part_takes_is_taken():
  config = written.config_of("dalle:tiny")
  config.compute.kernel = "xla"
  assert run.keywords(run.read(config))["parts"]["prior"]["kernel"] == "xla"
  config = quickstart.get_config()
  config.compute.remt = "full"
  with pytest.raises(BadConfig, match=r"compute\.remt.*did you mean 'remat'"):
    run.read(config)


@pytest.mark.parametrize(
  ("key", "text"), [("model.remat", "full"), ("microbatches", "2")]
)
def test_an_old_place_is_refused_with_the_new_one(key, text):
  plain = run.settings.plain_of(quickstart.get_config())
  new = f"compute.{key.split('.')[-1]}"
  with pytest.raises(BadConfig, match=f"{key} is .*--config.{new}={text}"):
    overrides.apply(plain, [(key, text)])
  found = overrides.apply(plain, [(new, text)])["compute"]
  assert str(found[new.split(".")[-1]]) == text
  config = quickstart.get_config()  # a file of one's own, written before
  section = config.model if "." in key else config
  with config.unlocked():
    section[key.split(".")[-1]] = text
  with pytest.raises(BadConfig, match=f"{key} is {new} today.*config.{new} ="):
    run.read(config)


def test_a_line_of_today_sets_a_config_of_before():
  old = of_before(run.read(quickstart.get_config()))
  found = run.read(overrides.apply(old, [("compute.remat", "full")]))
  assert found["compute"]["remat"] == "full"
  with pytest.raises(BadConfig, match="is compute.remat today"):
    overrides.apply(old, [("model.remat", "full")])


def test_another_kind_takes_what_compute_says():
  plain = run.settings.plain_of(skeleton())
  plain["compute"] |= {"dtype": "bfloat16"}
  found = overrides.apply(plain, [("model.kind", "encoder")])
  assert not {*COMPUTE} & {*found["model"]}
  made = compute.keywords(found)
  assert made["dtype"] == "bfloat16" and made["remat"] == "none"


def test_what_a_decoder_is_told_of_is_what_it_is_made_of():
  config = quickstart.get_config()
  config.model.layers = 1
  config.compute.update(dtype="bfloat16", remat="full", kernel="blocks")
  model = run.model_of(run.read(config))
  stack = run.keywords(run.read(config))
  assert model.operand_dtype == "bfloat16"
  assert (stack["remat"], stack["kernel"]) == ("full", "blocks")
  mesh = sharding.mesh_of(jax.devices()[0])
  with jax.set_mesh(mesh):
    config.mesh.fsdp = 1
    r = run.build(run.read(config), mesh)
    text = r.advance().lower(r.state, r.batch).as_text()
  assert "bf16" in text and "optimization_barrier" in text
