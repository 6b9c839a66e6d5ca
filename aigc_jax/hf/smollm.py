"""SmolLM3: a Llama of which every fourth layer knows no positions."""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.qwen import KINDS, their_windows
from aigc_jax.hf.settings import (
  Settings,
  each_turned,
  pattern_of,
  windows_of,
)
from aigc_jax.hf.table import Family


def _turned(c: Settings, layers: int) -> list[bool]:
  """Of each layer whether it is turned: by a list of 1 and 0, or by a rule."""
  every = c.integer("no_rope_layer_interval", 4)
  given = c.value("no_rope_layers")
  if given is None:
    return [(i + 1) % every != 0 for i in range(layers)]
  whole = isinstance(given, list) and len(given) >= layers
  if not whole or any(x not in (0, 1) for x in given):
    raise c.fault("no_rope_layers", f"a list of at least {layers} of 0 and 1")
  return [bool(x) for x in given[:layers]]


def settings(c: Settings) -> dict:
  """The decoder of a SmolLM3 config.json."""
  bias, mlp_bias = c.flag("attention_bias", False), c.flag("mlp_bias", False)
  found = llama.plain(c, kv_heads=4, base=2e6)
  turned = _turned(c, found["layers"])
  windows, window = (), c.maybe("sliding_window", 0)
  local = c.words("layer_types", KINDS, found["layers"])
  used = c.flag("use_sliding_window", False)
  if window and local and any(local) and not used:
    # Which of the two counts, depends on how transformers computes attention.
    raise c.fault("use_sliding_window", "true, as layer_types says")
  if window and used:
    # Where the kinds are not said, layers without positions are the local ones.
    local = local or [not x for x in turned]
    windows = windows_of([window if near else None for near in local])
  found |= dict(
    tied=c.flag("tie_word_embeddings", True),
    attention_bias=bias,
    out_bias=bias,
    mlp_bias=mlp_bias,
    rotary_layers=() if all(turned) else pattern_of(turned),
    windows=windows,
  )
  return found | llama.rotary_in_some(c, found)


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  return (
    llama.config(k)
    | their_windows(k)
    | dict(no_rope_layers=[int(x) for x in each_turned(k)])
  )


SMOLLM3 = Family(
  model_type="smollm3",
  architecture="SmolLM3ForCausalLM",
  prefix="model.",
  rows=llama.PROJECTIONS + llama.NORMS + llama.ENDS,
  settings=settings,
  config=config,
  ignored=llama.IGNORED,
)
