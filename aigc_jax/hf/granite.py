"""Granite: a Llama whose parts are multiplied by numbers of their own.

Embeddings, scores, what a block adds and logits each have one (muP-like, after
arXiv:2203.03466).
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family


def settings(c: Settings) -> dict:
  """The decoder of a Granite config.json."""
  found = llama.settings(c)
  # YaRN makes scores larger on top of what they are multiplied by.
  root = found["head_dim"] ** 0.5
  longer = found["attention_scale"] * root or 1.0
  return found | dict(
    embed_multiplier=c.number("embedding_multiplier", 1.0),
    residual_multiplier=c.number("residual_multiplier", 1.0),
    attention_scale=longer * c.number("attention_multiplier", 1.0),
    logit_multiplier=1 / c.number("logits_scaling", 1.0),
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  scale, scaling = k["attention_scale"], k["rotary_scaling"]
  plain = k["head_dim"] ** -0.5
  yarns = scaling and scaling["kind"] == "yarn"
  return llama.config(k) | dict(
    embedding_multiplier=k["embed_multiplier"] or 1.0,
    residual_multiplier=k["residual_multiplier"] or 1.0,
    attention_multiplier=plain if yarns else scale or plain,
    logits_scaling=1 / (k["logit_multiplier"] or 1.0),
  )


GRANITE = Family(
  model_type="granite",
  architecture="GraniteForCausalLM",
  prefix="model.",
  rows=llama.PROJECTIONS + llama.NORMS + llama.ENDS,
  settings=settings,
  config=config,
  ignored=llama.IGNORED,
)
