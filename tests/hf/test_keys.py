"""What each key of a config.json means, as in transformers, or is refused."""

import pytest

from aigc_jax import hf
from aigc_jax.errors import BadData
from aigc_jax.hf import families
from aigc_jax.hf.settings import Settings

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
    ("whisper", dict(activation_function="relu"), "activation_function"),
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


def test_a_whisper_is_written_only_with_the_activation_of_its_convolutions():
  family = hf.FAMILIES["whisper"]
  config = dict(d_model=24, vocab_size=9, decoder_start_token_id=1)
  k = family.settings(Settings(config, "config.json")) | dict(dtype="float32")
  assert not families.objections(family, k)
  other = families.objections(family, k | dict(activation="relu"))
  assert other == ["activation='relu'"]


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
