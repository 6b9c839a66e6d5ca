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


LLAMA3 = dict(
  rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
)
OURS3 = dict(kind="llama3", factor=8.0, low_factor=1.0, high_factor=4.0)
SLOWED = {"rope_type": "yarn", "factor": 2.0, "truncate": False}
LONG = dict(rope_type="longrope", short_factor=[1.0], long_factor=[2.0])


@pytest.mark.parametrize(
  "model_type,config,expected",
  [
    ("mistral", {}, dict(windows=(4096,), kv_heads=8)),
    ("mistral", dict(sliding_window=None), dict(windows=())),
    ("llama", {}, dict(kv_heads=8, tied=False, windows=())),
    ("qwen2", dict(sliding_window=9), dict(windows=(), tied=False)),
    (
      "qwen2",
      dict(sliding_window=9, use_sliding_window=True, max_window_layers=3),
      dict(windows=(None, None, None, 9)),
    ),
    ("qwen3", {}, dict(head_dim=128, qk_norm=True)),
    ("gemma", dict(hidden_act="gelu"), dict(activation="gelu_tanh", tied=True)),
    (
      "gemma2",
      {},
      dict(
        logit_softcap=30.0, attention_softcap=50.0, windows=(4096, None),
        head_dim=256, attention_scale=1 / 16,
      ),
    ),
    ("gemma2", dict(attn_logit_softcapping=None), dict(attention_softcap=0.0)),
    (
      "gemma3_text",
      dict(sliding_window_pattern=2, rope_local_base_freq=7.0),
      dict(windows=(4096, None), rotary_base=1e6, rotary_local_base=7.0),
    ),
    (
      "llama",
      dict(rope_theta=5.0, rope_scaling={"type": "linear", "factor": 2}),
      dict(rotary_base=5.0, rotary_scaling=dict(kind="linear", factor=2.0)),
    ),
    # What stands within goes before what stands outside, and may stand alone.
    (
      "llama",
      dict(rope_theta=5.0, rope_scaling={"rope_theta": 7.0}),
      dict(rotary_base=7.0),
    ),
    (
      "gemma3_text",
      dict(
        rope_parameters={"full_attention": {}},
        rope_theta=5.0,
        rope_local_base_freq=7.0,
      ),
      dict(rotary_base=5.0, rotary_local_base=7.0),
    ),
    # A length outside of what slows positions goes before the one within.
    (
      "llama",
      dict(original_max_position_embeddings=16, rope_parameters=LLAMA3),
      dict(rotary_scaling=OURS3 | dict(original_length=16)),
    ),
    (
      "llama",
      dict(max_position_embeddings=99, rope_parameters=LLAMA3),
      dict(rotary_scaling=OURS3 | dict(original_length=99)),
    ),
  ],
  ids=str,
)  # fmt: skip
def test_an_absent_key_means_what_transformers_means(
  model_type, config, expected
):
  body = dict(
    vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=4,
    num_attention_heads=8,
  )  # fmt: skip
  family = hf.FAMILIES[model_type]
  found = families.read_config(family, body | config, "config.json")
  assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
  "model_type,config,word",
  [
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention"),
    ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    (
      "llama",
      dict(max_position_embeddings=9, rope_scaling={"rope_type": "longrope"}),
      "short_factor",
    ),
    (
      "phi3",
      dict(
        max_position_embeddings=9,
        rope_scaling={"type": "su", "short_factor": [0, 1]},
      ),
      "short_factor",
    ),
    ("phi3", dict(rope_scaling={"type": "yarn", "factor": 2.0}), "longrope"),
    ("llama", dict(rope_scaling={"rope_type": "proportional"}), "proportional"),
    ("gemma3_text", dict(rope_scaling={"rope_type": "dynamic"}), "dynamic"),
    ("gemma2", dict(attn_logit_softcapping=0.0), "attn_logit_softcapping"),
    # transformers has the key, and passes it over.
    ("gemma3_text", dict(attn_logit_softcapping=2.0), "attn_logit_softcap"),
    ("llama", dict(rope_parameters={"full_attention": {}}), "full_attention"),
    # Families differ in how long they are where it is not said.
    ("llama", dict(rope_parameters=SLOWED), "no 'max_position_embeddings'"),
    (
      "mistral",
      dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
      "no 'max_position_embeddings'",
    ),
    # Versions of transformers differ in what counts.
    ("gemma", dict(hidden_activation="relu"), "hidden_activation"),
    ("gemma", dict(hidden_act="gelu", hidden_activation="gelu"), "hidden_acti"),
    ("olmo3", dict(rope_theta=99.0), "rope_theta"),
    (
      "olmo3",
      dict(max_position_embeddings=9, rope_scaling=SLOWED),
      "truncate",
    ),
    (
      "olmo3",
      dict(
        original_max_position_embeddings=8,
        rope_scaling={"rope_type": "yarn", "factor": 2.0},
      ),
      "original_max_position_embeddings",
    ),
    *(
      (name, dict(rope_parameters=slowing), word)
      for name in ("olmo3", "gemma3_text")
      for slowing, word in (
        # Of no kind of layer: it would be passed over.
        ({"rope_type": "linear", "factor": 4.0}, "rope_type"),
        ({"sliding_attention": {"type": "linear"}}, "rope_type"),
        ({"full_attention": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
      )
    ),
    (
      "smollm3",
      dict(sliding_window=5, layer_types=["sliding_attention"] * 2),
      "use_sliding_window",
    ),
    ("qwen3", dict(layer_types=["sliding_attention"] * 2), "use_sliding"),
    ("marian", dict(encoder_attention_heads=8), "decoder_attention_heads"),
    ("marian", dict(encoder_ffn_dim=8), "decoder_ffn_dim"),
    ("whisper", dict(encoder_attention_heads=8), "decoder_attention_heads"),
    ("whisper", dict(encoder_ffn_dim=8), "decoder_ffn_dim"),
    ("t5", dict(feed_forward_proj="gelu", dense_act_fn="relu"), "dense_act_fn"),
    ("t5", dict(is_gated_act=True), "is_gated_act"),
    ("phi", dict(qk_layernorm=True), "qk_layernorm"),
    ("stablelm", dict(partial_rotary_factor=1.5), "partial_rotary_factor"),
    ("cohere", dict(use_qk_norm=True), "use_qk_norm"),
    ("cohere2", dict(sliding_window=None), "sliding_window"),
    ("smollm3", dict(no_rope_layers=[1]), "no_rope_layers"),
    ("gemma3_text", dict(use_bidirectional_attention=True), "bidirectional"),
    ("qwen3", dict(use_sliding_window=True, layer_types=["x"] * 2), "x"),
  ],
)
def test_what_our_layers_do_not_compute_is_refused(model_type, config, word):
  body = dict(
    vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=8, n_embd=16, n_layer=2, n_head=2,
  )  # fmt: skip
  family = hf.FAMILIES[model_type]
  with pytest.raises(BadData, match=word):
    family.settings(Settings(body | config, "config.json"))


PLAIN = {"rope_type": "default", "rope_theta": 5e5}
FOUR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
  "model_type,newer",
  [
    *((name, PLAIN) for name in ("llama", "phi3", "gpt_neox", "gemma2")),
    ("olmo3", dict(full_attention=PLAIN, sliding_attention=PLAIN)),
    ("gemma3_text", dict(full_attention=PLAIN, sliding_attention=PLAIN)),
  ],
)
def test_a_scaling_that_was_added_in_the_older_way_is_not_passed_over(
  model_type, newer
):
  """As model cards say to, to a file that a newer library wrote."""
  body = dict(
    vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=2, rotary_pct=0.5, rope_parameters=newer,
  )  # fmt: skip
  family = hf.FAMILIES[model_type]

  def read(older):
    body["rope_scaling"] = older
    return families.read_config(family, body, "config.json")

  whole = {"type": "default", "factor": None, "rope_theta": 5e5}
  assert read(None) == read({}) == read(whole)
  with pytest.raises(BadData, match="rope_parameters, beside its rope_theta"):
    read(FOUR)
  if newer is not PLAIN:
    return  # of kinds of layers the older changes what it says, no more
  # It counts alone: a base that it leaves unsaid stands outside, or is lost.
  with pytest.raises(BadData, match="rope_theta=500000"):
    read({"type": "default"})
  body |= dict(rope_theta=5e5, rotary_emb_base=5e5)
  assert read({"type": "default"}) == read(None)


@pytest.mark.parametrize("name", ["smollm3", "cohere2"])
def test_yarn_makes_longer_what_is_turned_alone(name):
  """Not the scores of layers that know no positions."""
  family = hf.FAMILIES[name]

  def read(**config):
    body = dict(
      vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
      num_attention_heads=2, num_key_value_heads=2,
      max_position_embeddings=64, rope_parameters=SLOWED,
      layer_types=["sliding_attention", "full_attention"],
      use_sliding_window=True, sliding_window=5,
    )  # fmt: skip
    return family.settings(Settings(body | config, "config.json"))

  found = read(no_rope_layers=[1, 0])
  assert found["rotary_layers"] == (True, False)
  assert not found["attention_scale"]
  assert found["rotary_scaling"]["attention_factor"] > 1
  # What is written is read as what it was.
  again = family.settings(Settings(family.config(found), "config.json"))
  assert again["rotary_scaling"] == found["rotary_scaling"]
  apart = dict(found["rotary_scaling"])
  longer = apart.pop("attention_factor")
  scores = found | dict(
    rotary_scaling=apart, attention_scale=longer**2 * 8**-0.5, dtype="float32"
  )
  assert any(
    "attention_scale" in x for x in families.objections(family, scores)
  )


def test_a_clip_reads_a_text_where_transformers_does():
  """Whose default is the end of the published vocabulary."""

  def end(**config):
    clip = hf.FAMILIES["clip"]
    return clip.settings(Settings(dict(text_config=config), "c"))["text_end"]

  assert end() == 49_407 and end(eos_token_id=7) == 7
  assert end(vocab_size=50_000) == 49_407
  assert end(vocab_size=300, eos_token_id=2) == 299, "the largest there is"
  with pytest.raises(BadData, match="eos_token_id"):
    end(vocab_size=300)


def test_a_phi_3_was_as_long_as_stands_outside_of_what_slows_it():
  """transformers takes 4096 where it is not said, whatever stands within."""
  body = dict(
    vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=8, max_position_embeddings=8192,
    rope_scaling=LONG | dict(original_max_position_embeddings=32),
  )  # fmt: skip

  def length(**more):
    found = hf.FAMILIES["phi3"].settings(Settings(body | more, "config.json"))
    return found["rotary_scaling"]["original_length"]

  assert length() == 4096
  assert length(original_max_position_embeddings=64) == 64


@pytest.mark.parametrize(
  "key,value", [("is_causal", False), ("per_layer_config", {"0": {}})]
)
def test_what_transformers_reads_of_any_decoder_is_not_passed_over(key, value):
  """What sees what comes after it, and layers that differ."""
  for name, family in hf.FAMILIES.items():
    config = {"model_type": name, key: value}
    if family.library != "transformers":
      continue
    if key == "is_causal" and family.kind in families.SEE_ALL:
      assert families.family_of(config, "config.json") is family
      continue
    with pytest.raises(BadData, match=key):
      families.family_of(config, "config.json")
  # A tower of two reads it too.
  for name in ("clip", "siglip"):
    with pytest.raises(BadData, match=key):
      families.family_of(
        {"model_type": name, "text_config": {key: value}}, "config.json"
      )


@pytest.mark.parametrize(
  "name", [name for name, family in hf.FAMILIES.items() if family.aliases]
)
def test_a_key_that_means_another_is_read_as_that_or_refused(name):
  """As of GPT-2, whose n_head may be said as num_attention_heads."""
  family = hf.FAMILIES[name]
  body = dict(vocab_size=9, n_embd=24, n_layer=2, n_head=2)
  for side in ("encoder", "decoder") if name != "t5" else ():
    body |= {f"{side}_attention_heads": 4, f"{side}_layers": 3}

  def read(**config):
    return families.read_config(family, body | config, "config.json")

  assert {"num_attention_heads", "num_hidden_layers"} <= family.aliases.keys()
  for alias, own in family.aliases.items():
    if not alias.startswith("num"):
      continue
    there = body.get(own, 8)
    assert read(**{own: None, alias: there}) == read(**{own: there})
    assert read(**{own: there, alias: there}) == read(**{own: there})
    with pytest.raises(BadData, match=f"{alias}.*{own}"):
      read(**{own: there, alias: there + 1})


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


def test_whether_features_are_scaled_is_said_by_a_key_of_its_own():
  """Which transformers 5 writes, beside a tie that is always true."""

  def scaled(**config):
    t5 = hf.FAMILIES["t5"]
    return t5.settings(Settings(config, "config.json"))["tied_scale"]

  told = dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu_new")
  assert scaled(is_gated_act=True, **told)
  assert scaled() and not scaled(tie_word_embeddings=False)
  assert not scaled(tie_word_embeddings=True, scale_decoder_outputs=False)
  with pytest.raises(BadData, match="scale_decoder_outputs"):
    scaled(tie_word_embeddings=False, scale_decoder_outputs=True)


def test_older_keys_of_towers_count_alone_where_they_are():
  """As in transformers: what they leave unsaid is its default."""

  def read(**config):
    clip = hf.FAMILIES["clip"]
    return clip.settings(Settings(config, "config.json"))

  newer = dict(text_config=dict(num_attention_heads=4, num_hidden_layers=3))
  older = dict(text_config_dict=dict(num_hidden_layers=2))
  assert (read(**newer)["text_heads"], read(**newer)["text_layers"]) == (4, 3)
  both = read(**newer, **older)
  assert (both["text_heads"], both["text_layers"]) == (8, 2)
  assert read(**newer, text_config_dict=None)["text_heads"] == 4


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
