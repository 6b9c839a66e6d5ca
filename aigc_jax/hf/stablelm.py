"""StableLM: a Llama with layer norms, whose heads are turned in part."""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.llama import BLOCK
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family

ROWS = (
  *llama.PROJECTIONS,
  *llama.layer_norm("stack/norm_attention", f"{BLOCK}input_layernorm"),
  *llama.layer_norm("stack/norm_mlp", f"{BLOCK}post_attention_layernorm"),
  *llama.layer_norm("norm", "model.norm"),
  *(row for row in llama.ENDS if row.path != "norm/scale"),
)


def settings(c: Settings) -> dict:
  """The decoder of a StableLM config.json."""
  c.only("qk_layernorm", False)
  parallel = c.flag("use_parallel_residual", False)
  found = llama.unturned(c, kv_heads=32)
  return (
    found
    | llama.rotary_in_part(c, found["head_dim"], share=0.25)
    | llama.with_layer_norms(c)
    | dict(
      attention_bias=c.flag("use_qkv_bias", False),
      parallel=parallel,
      shared_norm=parallel,
    )
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  found = llama.their_plain(k)
  found.pop("head_dim")  # dim / heads, always
  return found | dict(
    layer_norm_eps=k["norm_eps"],
    partial_rotary_factor=llama.their_share(k),
    use_qkv_bias=k["attention_bias"],
    use_parallel_residual=k["parallel"],
    hidden_dropout=k["dropout"],
  )


STABLELM = Family(
  model_type="stablelm",
  architecture="StableLmForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings,
  config=config,
  ignored=llama.IGNORED,
)
