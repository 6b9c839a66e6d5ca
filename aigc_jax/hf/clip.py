"""CLIP: two towers, projections without a bias, a temperature."""

import math
from collections.abc import Mapping

from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings
from aigc_jax.hf.table import Family, Row

# By our name of a tower, theirs.
TOWERS = {"image": "vision_model", "text": "text_model"}
MOST_SCALE = 100.0  # of the logits, whatever is learned
LEGACY_END = 2  # of released texts, which then end where their largest id is


def tower(ours: str) -> tuple[Row, ...]:
  """The blocks of a tower."""
  block = f"{TOWERS[ours]}.encoder.layers.{{layer}}."

  def one(name: str, theirs: str, axes: str, bias: str):
    return linear(f"{ours}/stack/{name}", block + theirs, axes, bias)

  return (
    *layer_norm(f"{ours}/stack/norm_attention", f"{block}layer_norm1"),
    *one("attention/query", "self_attn.q_proj", "(NH)D->DNH", "(NH)->NH"),
    *one("attention/key", "self_attn.k_proj", "(KH)D->DKH", "(KH)->KH"),
    *one("attention/value", "self_attn.v_proj", "(KH)D->DKH", "(KH)->KH"),
    *one("attention/out", "self_attn.out_proj", "D(NH)->NHD", "D->D"),
    *layer_norm(f"{ours}/stack/norm_mlp", f"{block}layer_norm2"),
    *one("mlp/up", "mlp.fc1", "FD->DF", "F->F"),
    *one("mlp/down", "mlp.fc2", "DF->FD", "D->D"),
  )


SEEN, READ = "vision_model.embeddings", "text_model.embeddings"
# Of both CLIP and SigLIP.
BOTH = (
  *linear(
    "image/patches/projection", f"{SEEN}.patch_embedding", "DIYX->YXID", "D->D"
  ),
  Row("image/position/table", f"{SEEN}.position_embedding.weight", "TD->TD"),
  *tower("image"),
  *layer_norm("image/norm", "vision_model.post_layernorm"),
  Row("text/embed/table", f"{READ}.token_embedding.weight", "VD->VD"),
  Row("text/position/table", f"{READ}.position_embedding.weight", "TD->TD"),
  *tower("text"),
  *layer_norm("text/norm", "text_model.final_layer_norm"),
)
ROWS = (
  *BOTH,
  Row("image/class_token/table", f"{SEEN}.class_embedding", "(TD)->TD"),
  *layer_norm("image/norm_before", "vision_model.pre_layrnorm"),
  Row("image_projection/w", "visual_projection.weight", "ZD->DZ"),
  Row("text_projection/w", "text_projection.weight", "ZD->DZ"),
  Row("similarity/log_scale", "logit_scale", "->"),
)


def sizes(c: Settings, width: int, length: int, vocab: int) -> dict:
  """Sizes of both towers; the arguments are those that texts have unsaid."""
  seen, read = c.part("vision_config"), c.part("text_config")
  return dict(
    image_size=seen.integer("image_size", 224),
    channels=seen.integer("num_channels", 3),
    image_layers=seen.integer("num_hidden_layers", 12),
    image_dim=seen.integer("hidden_size", 768),
    image_heads=seen.integer("num_attention_heads", 12),
    image_mlp_dim=seen.integer("intermediate_size", 3072),
    vocab=read.integer("vocab_size", vocab),
    text_length=read.integer("max_position_embeddings", length),
    text_layers=read.integer("num_hidden_layers", 12),
    text_dim=read.integer("hidden_size", width),
    text_heads=read.integer("num_attention_heads", width // 64),
    text_mlp_dim=read.integer("intermediate_size", 4 * width),
  )


def shared(c: Settings, activation: str, eps: float) -> dict:
  """What both towers must have alike; BadData where they differ."""
  parts = [c.part("vision_config"), c.part("text_config")]
  found = [
    (
      part.among("hidden_act", ACTIVATIONS, activation),
      part.number("layer_norm_eps", eps),
    )
    for part in parts
  ]
  # Unsaid, an activation is the family's own, by their name.
  found = [(ACTIVATIONS.get(act, act), eps) for act, eps in found]
  if found[0] != found[1]:
    raise c.fault(
      "text_config", "the hidden_act and layer_norm_eps of vision_config"
    )
  return dict(activation=found[0][0], norm_eps=found[0][1])


TOWERS = ("vision_config", "text_config")
# What a config.json does not decide.
PLAIN = dict(
  init_std=0.02, dropout=0.0, remat="none", unroll=1, kernel="auto",
)  # fmt: skip


def settings(c: Settings) -> dict:
  """The keywords of `models.clip` for a config.json.

  Where older keys of the towers are there, those count alone, as they do in
  transformers.
  """
  for tower in TOWERS:
    if f"{tower}_dict" in c:
      c = c.instead(**{tower: c.value(f"{tower}_dict")})
  read = c.part("text_config")
  found = sizes(c, 512, 77, 49_408)
  end = read.integer("eos_token_id", 49_407, least=0)
  if end >= found["vocab"]:
    raise read.fault("eos_token_id", f"an id below vocab_size={found['vocab']}")
  scale = c.number("logit_scale_init_value", 2.6592)
  if scale > math.log(MOST_SCALE):
    raise c.fault("logit_scale_init_value", f"at most ln({MOST_SCALE:g})")
  return dict(
    **found,
    **shared(c, "quick_gelu", 1e-5),
    patch=c.part("vision_config").integer("patch_size", 32),
    embed_dim=c.integer("projection_dim", 512),
    image_pool="token",
    image_norm_before=True,
    patch_bias=False,
    image_projection=True,
    projection_bias=False,
    text_causal=True,
    text_end=found["vocab"] - 1 if end == LEGACY_END else end,
    scale=math.exp(scale),
    most_scale=MOST_SCALE,
    bias=None,
    **PLAIN,
  )


def towers_of(k: Mapping) -> tuple[dict, dict]:
  """(vision_config, text_config) for a clip."""

  def one(tower: str) -> dict:
    return dict(
      hidden_size=k[f"{tower}_dim"],
      num_hidden_layers=k[f"{tower}_layers"],
      num_attention_heads=k[f"{tower}_heads"],
      intermediate_size=k[f"{tower}_mlp_dim"] or 4 * k[f"{tower}_dim"],
      hidden_act=THEIR_ACTIVATIONS.get(k["activation"]),
      layer_norm_eps=k["norm_eps"],
      attention_dropout=0.0,
    )

  seen = dict(
    image_size=k["image_size"], patch_size=k["patch"],
    num_channels=k["channels"],
  )  # fmt: skip
  read = dict(
    vocab_size=k["vocab"], max_position_embeddings=k["text_length"],
    eos_token_id=k["text_end"], pad_token_id=None, bos_token_id=None,
  )  # fmt: skip
  return one("image") | seen, one("text") | read


def config(k: Mapping) -> dict:
  """config.json for a clip; what it cannot say is left out."""
  seen, read = towers_of(k)
  kinds = {"model_type": "clip_vision_model"}, {"model_type": "clip_text_model"}
  return dict(
    projection_dim=k["embed_dim"],
    logit_scale_init_value=math.log(k["scale"]),
    initializer_factor=1.0,
    vision_config=kinds[0] | seen | dict(projection_dim=k["embed_dim"]),
    text_config=kinds[1] | read | dict(projection_dim=k["embed_dim"]),
  )


def limits(k: Mapping) -> list[str]:
  """What transformers would read otherwise than it is."""
  if k["text_end"] == LEGACY_END:
    return [
      "text_end=2 (transformers then reads a text at its largest id: take a "
      "tokenizer with another end of text)"
    ]
  return []


CLIP = Family(
  model_type="clip",
  architecture="CLIPModel",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  limits=limits,
  kind="clip",
  pipeline="zero-shot-image-classification",
  ignored=("*.embeddings.position_ids",),
)
