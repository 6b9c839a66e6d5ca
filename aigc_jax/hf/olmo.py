"""OLMo 2 and 3: norms after attention and MLP alone, and of queries and keys.

The latter are over all heads at once. OLMo 3 has windows in three of four
layers, which keep their rotary frequencies where the others are slowed.
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.qwen import KINDS, their_windows
from aigc_jax.hf.settings import Settings, windows_of
from aigc_jax.hf.table import Family

BASE = 5e5  # of rotary positions, where it is not said
ROWS = (
  llama.PROJECTIONS
  + llama.HEAD_NORMS
  + (
    llama.norm("post_attention", "post_attention_layernorm"),
    llama.norm("post_mlp", "post_feedforward_layernorm"),
  )
  + llama.ENDS
)


def _shared(c: Settings, found: dict) -> dict:
  """What both read alike, on top of a Llama."""
  bias = c.flag("attention_bias", False)
  return found | dict(
    norm_eps=c.number("rms_norm_eps", 1e-5),
    attention_bias=bias,
    out_bias=bias,
    pre_norm=False,
    post_norm=True,
    qk_norm=True,
    qk_norm_joint=True,
  )


def settings2(c: Settings) -> dict:
  """The decoder of an OLMo 2 config.json."""
  return _shared(c, llama.plain(c))


def settings3(c: Settings) -> dict:
  """The decoder of an OLMo 3 config.json."""
  found = llama.unturned(c)
  window = c.integer("sliding_window", 4096)
  local = c.words("layer_types", KINDS, found["layers"])
  local = local or [(i + 1) % 4 != 0 for i in range(found["layers"])]
  wide, near = llama.by_kind(c)
  base = c.number("rope_theta", BASE)
  if base != BASE and "rope_theta" not in near:
    # Of layers with a window transformers 5 goes by its default then.
    raise c.fault("rope_theta", "that of each kind of layer in rope_parameters")
  # It counts where it stands beside those of the kinds alone.
  wide.only("truncate", True)
  return _shared(c, found) | dict(
    windows=windows_of([window if x else None for x in local]),
    rotary_base=wide.number("rope_theta", base),
    rotary_local_base=near.number("rope_theta", BASE),
    rotary_scaling=llama.any_scaling(c, wide),
  )


def config2(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  return llama.their_plain(k) | dict(attention_bias=k["attention_bias"])


def config3(k: Mapping) -> dict:
  """The same with windows; both older and newer keys of rotary positions."""
  found = config2(k) | their_windows(k)
  wide = dict(rope_type="default") | (found["rope_scaling"] or {})
  near = k["rotary_local_base"] or k["rotary_base"]
  return found | dict(
    sliding_window=found["sliding_window"] or 4096,
    rope_parameters=dict(
      full_attention=wide | dict(rope_theta=k["rotary_base"]),
      sliding_attention=dict(rope_type="default", rope_theta=near),
    ),
  )


OLMO2 = Family(
  model_type="olmo2",
  architecture="Olmo2ForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings2,
  config=config2,
  ignored=llama.IGNORED,
)
OLMO3 = Family(
  model_type="olmo3",
  architecture="Olmo3ForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings3,
  config=config3,
  ignored=llama.IGNORED,
)
