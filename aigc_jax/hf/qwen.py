"""Qwen2 (biases of query, key, value) and Qwen3 (normed queries and keys)."""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.settings import Settings, each_window, windows_of
from aigc_jax.hf.table import Family

KINDS = {"full_attention": False, "sliding_attention": True}


def _windows(c: Settings, layers: int) -> tuple:
  """By layer_types, or for the layers from max_window_layers on."""
  window = c.maybe("sliding_window", 4096)
  local = c.words("layer_types", KINDS, layers)
  if not c.flag("use_sliding_window", False):
    if local and any(local):
      raise c.fault("use_sliding_window", "true, as layer_types says")
    return ()
  first = c.integer("max_window_layers", 28, least=0)
  local = local or [i >= first for i in range(layers)]
  return windows_of([window if near else None for near in local])


def _shared(c: Settings, head_dim: int | None) -> dict:
  found = llama.plain(c, head_dim=head_dim, kv_heads=32)
  return found | dict(windows=_windows(c, found["layers"]))


def settings2(c: Settings) -> dict:
  """The decoder of a Qwen2 config.json."""
  return _shared(c, None) | dict(attention_bias=True)


def settings3(c: Settings) -> dict:
  """The decoder of a Qwen3 config.json."""
  bias = c.flag("attention_bias", False)
  return _shared(c, 128) | dict(
    qk_norm=True, attention_bias=bias, out_bias=bias
  )


def their_windows(k: Mapping) -> dict:
  """The windows of a decoder, by layer."""
  sizes = each_window(k)
  window = next((s for s in sizes if s), None)
  kinds = ["sliding_attention" if s else "full_attention" for s in sizes]
  return dict(
    use_sliding_window=window is not None,
    sliding_window=window,
    layer_types=kinds,
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  found = llama.their_plain(k) | their_windows(k)
  # Older readers know only: full up to a layer, sliding from it on.
  kinds, first = found["layer_types"], k["layers"]
  if found["use_sliding_window"]:
    first = kinds.index("sliding_attention")
  return found | dict(max_window_layers=first)


def config3(k: Mapping) -> dict:
  """The same with the biases that Qwen3 may have."""
  return config(k) | dict(attention_bias=k["attention_bias"])


QWEN2 = Family(
  model_type="qwen2",
  architecture="Qwen2ForCausalLM",
  prefix="model.",
  rows=llama.PROJECTIONS + llama.NORMS + llama.ENDS,
  settings=settings2,
  config=config,
  ignored=llama.IGNORED,
  insist="Qwen2Tokenizer",
)
QWEN3 = Family(
  model_type="qwen3",
  architecture="Qwen3ForCausalLM",
  prefix="model.",
  rows=llama.PROJECTIONS + llama.NORMS + llama.HEAD_NORMS + llama.ENDS,
  settings=settings3,
  config=config3,
  ignored=llama.IGNORED,
)
