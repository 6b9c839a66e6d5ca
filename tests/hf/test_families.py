"""Which architecture a decoder is, and what stands in the way of others."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from aigc_jax import hf
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf import families, kinds, table
from aigc_jax.hf.safetensors import Tensor
from aigc_jax.hf.settings import Settings, canonical, windows_of
from aigc_jax.layers.position import frequencies
from aigc_jax.run import compute
from tests import tiny

LLAMA = tiny.LLAMA | dict(position_length=64)
GPT2 = tiny.GPT2
GEMMA = LLAMA | dict(
  activation="gelu_tanh", norm_offset=1.0, embed_scale=True, tied=True
)
GEMMA2 = GEMMA | dict(post_norm=True, windows=(5, None))
LLAMA3 = dict(
  kind="llama3", factor=8.0, low_factor=1.0, high_factor=4.0,
  original_length=16,
)  # fmt: skip

YARN = dict(
  kind="yarn", factor=4.0, fast=32.0, slow=1.0, original_length=64, whole=True
)
LONGROPE = dict(
  kind="longrope", short=(1.0, 1.1, 1.2, 1.3), long=(1.0, 2.0, 3.0, 4.0),
  original_length=16,
)  # fmt: skip
OLMO = LLAMA | dict(
  pre_norm=False, post_norm=True, qk_norm=True, qk_norm_joint=True
)
LAYER_NORM = dict(norm="layer", norm_bias=True)
NEOX = GPT2 | dict(
  position="rotary", rotary_dim=4, parallel=True, tied=False,
  activation="gelu",
)  # fmt: skip
COHERE = LLAMA | dict(
  norm="layer", parallel=True, shared_norm=True, tied=True, dim=48, head_dim=8,
  heads=6, logit_multiplier=0.0625,
)  # fmt: skip
STABLELM = LLAMA | LAYER_NORM | dict(rotary_dim=2, dim=48)

# name: (decoder, model_type)
FITS = {
  "llama": (LLAMA, "llama"),
  "llama with biases": (
    LLAMA | dict(attention_bias=True, out_bias=True, mlp_bias=True), "llama"
  ),
  "llama 3": (LLAMA | dict(rotary_scaling=LLAMA3, tied=True), "llama"),
  "scaled attention": (LLAMA | dict(attention_scale=8**-0.5), "llama"),
  "a width of no whole heads": (LLAMA | dict(dim=25), "mistral"),
  "a window": (LLAMA | dict(windows=(7,)), "mistral"),
  "gpt2": (GPT2, "gpt2"),
  "gpt2 with silu": (GPT2 | dict(activation="silu", tied=False), "gpt2"),
  "qwen2": (LLAMA | dict(attention_bias=True), "qwen2"),
  "qwen2 with late windows": (
    LLAMA | dict(attention_bias=True, windows=(None, None, 7)), "qwen2"
  ),
  "qwen3": (LLAMA | dict(qk_norm=True), "qwen3"),
  "qwen3 with any windows": (
    LLAMA | dict(qk_norm=True, windows=(7, None), layers=5), "qwen3"
  ),
  "gemma": (GEMMA, "gemma"),
  "gemma 2": (GEMMA2 | dict(logit_softcap=3.0), "gemma2"),
  "gemma 2 without windows": (GEMMA2 | dict(windows=()), "gemma2"),
  "gemma 2 scaled": (GEMMA2 | dict(attention_scale=144**-0.5), "gemma2"),
  "gemma 3": (
    GEMMA2 | dict(qk_norm=True, rotary_local_base=100.0), "gemma3_text"
  ),
  "gemma 3 of one base": (GEMMA2 | dict(qk_norm=True), "gemma3_text"),
  "granite": (
    LLAMA
    | dict(embed_multiplier=12.0, logit_multiplier=1 / 13, dim=48,
           residual_multiplier=0.22, attention_scale=1 / 64),
    "granite",
  ),
  "olmo 2": (OLMO, "olmo2"),
  "olmo 3": (OLMO | dict(windows=(7, 7, None)), "olmo3"),
  "olmo 3 of two bases": (
    OLMO | dict(windows=(7, None), rotary_local_base=100.0,
                rotary_scaling=YARN | dict(attention_factor=1.2)),
    "olmo3",
  ),
  "phi 3": (LLAMA | dict(rotary_dim=6), "phi3"),
  "phi 3 with windows": (LLAMA | dict(rotary_dim=2, windows=(5,)), "phi3"),
  "gpt-neox": (NEOX, "gpt_neox"),
  "gpt-neox in a row, tied": (
    NEOX | dict(parallel=False, tied=True, rotary_dim=None), "gpt_neox"
  ),
  "stablelm": (STABLELM, "stablelm"),
  "stablelm side by side": (
    STABLELM | dict(parallel=True, shared_norm=True, attention_bias=True,
                    rotary_scaling=YARN | dict(attention_factor=1.2)),
    "stablelm",
  ),
  "phi": (
    NEOX | dict(shared_norm=True, head_bias=True, activation="gelu_tanh"),
    "phi",
  ),
  "cohere": (COHERE, "cohere"),
  "cohere with windows": (
    COHERE | dict(windows=(7, 7, None), rotary_layers=(True, True, False)),
    "cohere2",
  ),
  "dynamic": (
    LLAMA | dict(rotary_scaling=dict(kind="dynamic", factor=2.0,
                                     original_length=16)),
    "llama",
  ),
  "longrope": (
    LLAMA | dict(rotary_scaling=LONGROPE | dict(attention_factor=1.2)), "llama"
  ),
  "longrope of a part": (
    LLAMA | dict(rotary_dim=6, dim=48,
                 rotary_scaling=LONGROPE | dict(short=[1, 1, 2],
                                                long=(1.5, 2, 3))),
    "phi3",
  ),
  "smollm3": (LLAMA | dict(rotary_layers=(True, False)), "smollm3"),
  "smollm3 with windows": (
    LLAMA | dict(rotary_layers=(True, False), windows=(None, 7, 7)), "smollm3"
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_a_decoder_is_written_as_a_config_and_read_back(name):
  kwargs, model_type = FITS[name]
  family = hf.choose_family(kwargs)
  assert family.model_type == model_type
  config = families.write_config(family, kwargs)
  back = families.read_config(family, config, "config")
  assert canonical(back) == canonical(kwargs)
  # And the table has a row for each leaf.
  table.leaves(family, kinds.shapes_of("decoder", kwargs))


# name: (what is changed, what the refusal names)
MISFITS = {
  "sinusoids": (dict(position="sinusoidal"), ["position='sinusoidal'"]),
  "no positions": (dict(position="none"), ["position='none'"]),
  "no gate": (dict(gated=False), ["gated=False"]),
  "a bias on the output": (dict(out_bias=True), ["out_bias=True"]),
  "an odd scale": (
    dict(attention_scale=0.3, windows=(3,)), ["attention_scale=0.3"]
  ),
  "two faults": (
    dict(gated=False, logit_softcap=3.0), ["gated=False", "logit_softcap=3.0"]
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_no_family_expresses_is_refused_by_name(name):
  change, words = MISFITS[name]
  with pytest.raises(BadConfig) as fault:
    hf.choose_family(LLAMA | change)
  for word in words:
    assert f"model.{word}" in str(fault.value)


def test_a_phi_3_is_slowed_as_transformers_loads_it_or_not_at_all():
  part = FITS["longrope of a part"][0]
  for change, word in (
    (dict(dim=24), "head_dim=8"), (dict(rotary_scaling=YARN), "yarn"),
  ):  # fmt: skip
    with pytest.raises(BadConfig, match=word):
      hf.choose_family(part | change, "phi3")


def test_a_cap_in_attention_is_written_only_where_it_is_computed():
  capped = GEMMA2 | dict(attention_softcap=5.0)
  assert hf.choose_family(capped).model_type == "gemma2"
  with pytest.raises(BadConfig, match="attention_softcap=5.0"):
    hf.choose_family(capped | dict(qk_norm=True), "gemma3_text")


def test_a_family_asked_for_by_name_is_used_or_refused():
  assert hf.choose_family(LLAMA, "mistral").model_type == "mistral"
  with pytest.raises(BadConfig, match="GPT2LMHeadModel .*position="):
    hf.choose_family(LLAMA, "gpt2")
  with pytest.raises(BadConfig, match="did you mean 'llama'"):
    hf.choose_family(LLAMA, "lama")


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("model_type", ["llama", "granite", "olmo3", "phi3"])
def test_a_scaling_that_is_called_by_no_word_is_refused(model_type, key):
  kwargs = next(k for k, fits in FITS.values() if fits == model_type)
  config = families.write_config(hf.FAMILIES[model_type], kwargs)
  config.pop("rope_scaling", None)
  config["rope_parameters"] = {key: ["yarn"]}
  with pytest.raises(BadData, match=key):
    families.read_config(hf.FAMILIES[model_type], config, "config.json")


def test_yarn_is_an_attention_scale_and_slower_planes():
  """arXiv:2309.00071: sqrt(1/t) = 0.1 ln(s) + 1 for queries and keys both."""
  asked = dict(
    rope_type="yarn", factor=16.0, original_max_position_embeddings=64
  )
  config = hf.families.write_config(hf.FAMILIES["llama"], LLAMA)
  config |= dict(rope_scaling=asked, rope_theta=1e4)
  read = hf.families.read_config(hf.FAMILIES["llama"], config, "config.json")
  longer = 0.1 * math.log(16) + 1
  scale = longer**2 * LLAMA["head_dim"] ** -0.5
  assert read["attention_scale"] == pytest.approx(scale)
  assert hf.choose_family(read).model_type == "llama"
  again = hf.families.write_config(hf.FAMILIES["llama"], read)["rope_scaling"]
  assert again["attention_factor"] == pytest.approx(longer)
  plain = frequencies(64, 1e4, None)
  slowed = frequencies(64, 1e4, read["rotary_scaling"])
  turns = 64 * plain / (2 * math.pi)
  np.testing.assert_allclose(slowed[turns < 0.5], plain[turns < 0.5] / 16)
  kept = slowed[:2] / plain[:2]
  assert kept[0] == 1 and np.all(np.diff(slowed) < 0)


def test_another_model_type_is_no_misspelling():
  for kind in ("gemma3", "llama4", "qwen2_moe", "gpt_neo"):
    with pytest.raises(BadData, match="is not one that can be read") as fault:
      hf.families.family_of({"model_type": kind}, "config.json")
    assert "did you mean" not in str(fault.value)
    assert "gemma3_text" in str(fault.value), "what there is, is listed"


def presets():
  for name in ("gemma", "gpt2", "gpt3", "llama", "mistral", "qwen"):
    module = importlib.import_module(f"configs.{name}")
    for size in module.SIZES:
      yield pytest.param(module, size, id=f"{name}:{size}")


@pytest.mark.parametrize("module,size", list(presets()))
def test_every_preset_of_a_published_model_can_be_exported(module, size):
  model = compute.keywords(module.get_config(size).to_dict())
  assert model.pop("kind") == "decoder"
  family = hf.choose_family(model)
  name = module.__name__.removeprefix("configs.").replace("gpt3", "gpt2")
  if name == "mistral" and not any(model["windows"]):
    name = "llama"  # without its window Mistral is a Llama
  assert family.model_type.startswith(name)


def test_a_window_pattern_is_the_shortest():
  assert windows_of([None, None]) == ()
  assert windows_of([4, 4, 4]) == (4,)
  assert windows_of([4, None, 4]) == (4, None)
  assert windows_of([4, 4, None, 4]) == (4, 4, None)


@pytest.mark.parametrize(
  ("model_type", "config", "count"),
  [
    # Command-R (35B) and Command-R7B, as their folders describe them.
    (
      "cohere",
      dict(vocab_size=256000, hidden_size=8192, intermediate_size=22528,
           num_hidden_layers=40, num_attention_heads=64),
      34_980_831_232,
    ),
    (
      "cohere2",
      dict(vocab_size=256000, hidden_size=4096, intermediate_size=14336,
           num_hidden_layers=32, num_attention_heads=32,
           num_key_value_heads=8),
      8_028_033_024,
    ),
  ],
)  # fmt: skip
def test_a_folder_has_as_many_parameters_as_published(
  model_type, config, count
):
  family = hf.FAMILIES[model_type]
  kwargs = families.read_config(family, config, "config.json")
  shapes = kinds.shapes_of("decoder", kwargs)
  assert sum(math.prod(shape) for shape in shapes.values()) == count
  table.leaves(family, shapes)


def test_a_tensor_by_its_older_name_and_its_newer_is_refused():
  norm = "bert.embeddings.LayerNorm."
  tensor = Tensor(Path("model.safetensors"), np.dtype("f4"), (2,), 8)
  bert = hf.FAMILIES["bert"]
  assert norm + "weight" in table.renamed(bert, {norm + "gamma": tensor})
  with pytest.raises(BadData, match="LayerNorm.weight' is there twice"):
    table.renamed(bert, {norm + "gamma": tensor, norm + "weight": tensor})


def test_rows_of_a_family_name_each_side_once():
  for family in hf.FAMILIES.values():
    # Of two names for one leaf, what lies beside it says which is meant.
    paths = [(row.path, row.beside) for row in family.rows]
    assert len(set(paths)) == len(paths)
    shared = {}
    for row in family.rows:
      shared.setdefault((row.name, row.parts), []).append(row.part)
    for (_, parts), seen in shared.items():
      count = parts if isinstance(parts, int) else len(parts)
      assert sorted(seen) == list(range(count)) and count > 0
