"""Published architectures have the parameter counts that were published."""

import re
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from aigc_jax import flops, presets, tree
from aigc_jax.models import MODELS
from aigc_jax.presets import (
  gemma,
  gpt2,
  gpt3,
  images,
  llama,
  mistral,
  qwen,
  skeleton,
)
from aigc_jax.run import compute
from configs import text_file
from tests.sweep import sweep

FAMILIES = dict(
  gpt2=gpt2, gpt3=gpt3, llama=llama, mistral=mistral, qwen=qwen, gemma=gemma
)
PRESETS = [
  f"{f}:{size}" for f, config in FAMILIES.items() for size in config.SIZES
]

# The sums of the sizes of the tensors in the released checkpoints.
PUBLISHED = {
  "gpt2:small": 124_439_808,
  "gpt2:medium": 354_823_168,
  "gpt2:large": 774_030_080,
  "gpt2:xl": 1_557_611_200,
  "llama:llama1_7b": 6_738_415_616,
  "llama:llama1_13b": 13_015_864_320,
  "llama:llama1_33b": 32_528_943_616,
  "llama:llama1_65b": 65_285_660_672,
  "llama:llama2_7b": 6_738_415_616,
  "llama:llama2_13b": 13_015_864_320,
  "llama:llama2_70b": 68_976_648_192,
  "llama:llama3_8b": 8_030_261_248,
  "llama:llama3_70b": 70_553_706_496,
  "llama:llama3_405b": 405_853_388_800,
  "llama:llama31_8b": 8_030_261_248,
  "llama:llama31_70b": 70_553_706_496,
  "llama:llama32_1b": 1_235_814_400,
  "llama:llama32_3b": 3_212_749_824,
  "mistral:7b": 7_241_732_096,
  "mistral:7b_v03": 7_248_023_552,
  "qwen:qwen2_0.5b": 494_032_768,
  "qwen:qwen2_1.5b": 1_543_714_304,
  "qwen:qwen2_7b": 7_615_616_512,
  "qwen:qwen2_72b": 72_706_203_648,
  "qwen:qwen3_0.6b": 596_049_920,
  "qwen:qwen3_1.7b": 1_720_574_976,
  "qwen:qwen3_4b": 4_022_468_096,
  "qwen:qwen3_8b": 8_190_735_360,
  "qwen:qwen3_14b": 14_768_307_200,
  "qwen:qwen3_32b": 32_762_123_264,
  "gemma:gemma1_2b": 2_506_172_416,
  "gemma:gemma1_7b": 8_537_680_896,
  "gemma:gemma2_2b": 2_614_341_888,
  "gemma:gemma2_9b": 9_241_705_984,
  "gemma:gemma2_27b": 27_227_128_320,
  "gemma:gemma3_270m": 268_098_176,
  "gemma:gemma3_1b": 999_885_952,
}

# Parameters in millions in table D.1 of arXiv:2005.14165, which rounds.
GPT3 = {
  "125m": 125,
  "350m": 356,
  "760m": 760,
  "1.3b": 1_320,
  "2.7b": 2_650,
  "6.7b": 6_660,
  "13b": 12_850,
  "175b": 174_600,
}


def config_of(preset):
  family, size = preset.split(":")
  return FAMILIES[family].get_config(size)


def closed_formula(m):
  """The parameters of a decoder with the config's model section `m`."""
  D, Q, KV = m.dim, m.heads * m.head_dim, m.kv_heads * m.head_dim
  norm = D * (2 if m.norm_bias else 1)
  attention = 2 * D * Q + 2 * D * KV
  attention += (Q + 2 * KV) * m.attention_bias + D * m.out_bias
  attention += 2 * m.head_dim * m.qk_norm
  ups = 2 if m.gated else 1
  mlp = (ups + 1) * D * m.mlp_dim + (ups * m.mlp_dim + D) * m.mlp_bias
  layer = attention + mlp + norm * (4 if m.post_norm else 2)
  tables = m.vocab * (1 if m.tied else 2) + (m.position_length or 0)
  return tables * D + m.layers * layer + norm


def matmuls(m):
  """Those of them that take part in matrix products."""
  attention = 2 * m.dim * m.head_dim * (m.heads + m.kv_heads)
  mlp = (3 if m.gated else 2) * m.dim * m.mlp_dim
  return m.vocab * m.dim + m.layers * (attention + mlp)


def params_of(config):
  """The abstract parameters: nothing is allocated."""
  fields = compute.keywords(config.to_dict())
  model = MODELS[fields.pop("kind")](**fields)
  batch = {"tokens": jax.ShapeDtypeStruct((1, 8), jnp.int32)}
  boxed = jax.eval_shape(model.init, jax.random.key(0), batch)
  return nn.unbox(boxed)["params"]


# By default the first and the last of a family: all of them take long.
COUNTED = {
  f"{f}:{list(config.SIZES)[end]}"
  for f, config in FAMILIES.items()
  for end in (0, -1)
}


@pytest.mark.parametrize("preset", sweep(PRESETS, *COUNTED))
def test_counts(preset):
  config = config_of(preset)
  params = params_of(config)
  assert tree.count(params) == closed_formula(config.model)
  assert flops.matmul_params(params) == matmuls(config.model)
  if preset in PUBLISHED:
    assert tree.count(params) == PUBLISHED[preset]
  else:
    millions = GPT3[preset.removeprefix("gpt3:")]
    assert tree.count(params) / 1e6 == pytest.approx(millions, rel=0.005)


def test_every_preset_is_held_against_a_published_count():
  assert set(PRESETS) == set(PUBLISHED) | {f"gpt3:{size}" for size in GPT3}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_keys_of_the_skeleton(preset):
  def keys(config):
    return {
      section: set(part.keys()) if hasattr(part, "keys") else None
      for section, part in config.items()
    }

  assert keys(config_of(preset)) == keys(skeleton())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fits_itself(preset):
  """What a run would refuse only once it has started."""
  config = config_of(preset)
  m, data, optim = config.model, config.data, config.optim
  assert m.heads % m.kv_heads == 0 and m.head_dim % 2 == 0
  assert not m.position_length or data.length <= m.position_length
  assert data.tokenizer_vocab <= m.vocab
  assert 0 < optim.warmup_steps < config.steps / 10
  assert data.batch & (data.batch - 1) == 0 or preset == "gpt3:175b"


def test_gpt2_small_costs_what_the_table_of_the_papers_says():
  """6 * matmul parameters + 12 * width * half the length, by layer."""
  config = gpt2.get_config("small")
  cost = flops.per_token(
    params_of(config), length=config.data.length, windows=config.model.windows
  )
  matmul = 50257 * 768 + 12 * 12 * 768**2
  assert cost.train == 6 * matmul + 12 * 12 * 768 * 512.5


def test_mistral_sees_its_window_only():
  config = mistral.get_config("7b")
  params = params_of(config)
  costs = {
    w: flops.per_token(params, length=8192, windows=w).train
    for w in (config.model.windows, ())
  }
  width, layers = 4096, 32
  # Of the mean (8192 + 1) / 2, a window of 4096 leaves 3072.25.
  lost = 12 * width * layers * (4096.5 - 3072.25)
  assert costs[()] - costs[(4096,)] == pytest.approx(lost)


@pytest.mark.parametrize(
  "config, preset, words",
  [
    (gpt2, "smal", "did you mean 'small'"),
    (llama, "llama3_7b", "llama3_405b"),
    (gpt2, "small,c5", "did you mean 'c4'"),
    (text_file, "byte", "bytes, sentencepiece"),
  ],
)
def test_an_unknown_preset_is_told_what_there_is(config, preset, words):
  with pytest.raises(ValueError, match=words):
    config.get_config(preset)


def families() -> list[str]:
  """The modules of presets that have sizes of their own."""
  names = [path.stem for path in Path(presets.__file__).parent.glob("*.py")]
  return sorted(
    name
    for name in names
    if name != "__init__"
    and hasattr(import_module(f"aigc_jax.presets.{name}"), "get_config")
  )


def test_every_family_of_presets_is_named_where_one_looks_for_them():
  listed = presets.__doc__.partition("families are")[2].partition(";")[0]
  assert re.findall(r"\w+", listed) == families()


@pytest.mark.parametrize("name", families())
def test_a_config_names_every_preset_that_it_takes(name):
  """By itself, or as one between a first and a last: `llama1_7b ...`."""
  text = import_module(f"configs.{name}").__doc__
  told = [word.strip(".") for word in re.findall(r"[\w.]+", text)]
  firsts = re.findall(r"([\w.]+) \.\.\.", text)
  stems = [word.partition("_")[0] for word in firsts]
  family = import_module(f"aigc_jax.presets.{name}")
  for preset in family.SIZES:
    assert preset in told or preset.partition("_")[0] in stems, preset
  if getattr(family, "sized", None) is images.sized:
    assert {*images.DATASETS} <= {*told}
  elif hasattr(family, "published"):
    assert {"c4", "lm1b", "stdlib"} <= {*told}


def test_the_second_word_of_a_preset_is_the_dataset():
  (source,) = gpt2.get_config("medium,stdlib").data.sources
  assert source["name"] == "stdlib"
  (source,) = gpt2.get_config("medium").data.sources
  assert source["name"] == "lm1b"


@pytest.mark.parametrize("name", [
  "vit", "resnet", "dit", "unet", "vae", "vq", "gan", "latent", "dalle",
])  # fmt: skip
def test_every_size_of_a_model_of_images_takes_ones_own_folder(name):
  module = import_module(f"aigc_jax.presets.{name}")
  for size in module.SIZES:
    if "text" not in size:  # that is told captions
      for dataset in images.DATASETS:
        config = module.get_config(f"{size},{dataset}")
        assert config.data.sources[0] == images.DATASETS[dataset]


def test_presets_do_not_leak_into_each_other():
  first = llama.get_config("llama32_1b")
  first.model.rotary_scaling.factor = 99.0
  assert llama.get_config("llama32_1b").model.rotary_scaling.factor == 32.0
  assert llama.get_config("llama3_8b").model.rotary_scaling is None
