"""Cohere's Command-R, its successor with windows, and Aya, which are such.

Attention and MLP stand side by side under one norm without a bias, and logits
are multiplied by a number. Components of a head that are turned together lie
side by side in the files, and half a head apart here. In the successor layers
with a window are turned, and the others know no positions.
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.qwen import KINDS, their_windows
from aigc_jax.hf.settings import Settings, pattern_of, windows_of
from aigc_jax.hf.table import Family

TURNED = ("stack/attention/query", "stack/attention/key")
ROWS = (
  *(
    row._replace(pairs=row.path.startswith(TURNED)) for row in llama.PROJECTIONS
  ),
  llama.norm("norm_attention", "input_layernorm"),
  *llama.ENDS,
)


def _read(c: Settings, base: float) -> dict:
  """What both read alike. base: of rotary positions, where it is not said."""
  c.only("use_qk_norm", False)
  bias = c.flag("attention_bias", False)
  return llama.plain(c, base=base) | dict(
    norm="layer",
    norm_eps=c.number("layer_norm_eps", 1e-5),
    attention_bias=bias,
    out_bias=bias,
    parallel=True,
    shared_norm=True,
    tied=c.flag("tie_word_embeddings", True),
    logit_multiplier=c.number("logit_scale", 0.0625),
  )


def settings(c: Settings) -> dict:
  """The decoder of a Cohere config.json."""
  return _read(c, base=5e5)


def settings2(c: Settings) -> dict:
  """The decoder of a Cohere 2 config.json."""
  found, window = _read(c, base=1e4), c.maybe("sliding_window", 4096)
  if window is None:
    raise c.fault("sliding_window", "a whole number from 1")
  every = c.integer("sliding_window_pattern", 4)
  local = c.words("layer_types", KINDS, found["layers"])
  local = local or [(i + 1) % every != 0 for i in range(found["layers"])]
  found |= dict(
    windows=windows_of([window if near else None for near in local]),
    rotary_layers=() if all(local) else pattern_of(local),
  )
  return found | llama.rotary_in_some(c, found)


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  found = llama.their_plain(k)
  for key in ("head_dim", "rms_norm_eps"):
    found.pop(key)  # dim / heads, always
  return found | dict(
    layer_norm_eps=k["norm_eps"],
    attention_bias=k["attention_bias"],
    logit_scale=k["logit_multiplier"] or 1.0,
  )


def config2(k: Mapping) -> dict:
  """The same with windows."""
  found = config(k) | their_windows(k)
  return found | dict(sliding_window=found["sliding_window"] or 4096)


COHERE = Family(
  model_type="cohere",
  architecture="CohereForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings,
  config=config,
  ignored=llama.IGNORED,
)
COHERE2 = Family(
  model_type="cohere2",
  architecture="Cohere2ForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings2,
  config=config2,
  ignored=llama.IGNORED,
)
