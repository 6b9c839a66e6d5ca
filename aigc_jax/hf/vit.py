"""ViT: a class token and learned positions; no pooler, a linear classifier."""

from collections.abc import Mapping

from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings
from aigc_jax.hf.table import Family, Row

EMBED, BLOCK = "vit.embeddings", "vit.encoder.layer.{layer}."


def _block(ours: str, theirs: str, axes: str, bias: str) -> tuple[Row, Row]:
  return linear(f"stack/{ours}", f"{BLOCK}{theirs}", axes, bias)


ROWS = (
  Row("class_token/table", f"{EMBED}.cls_token", "1TD->TD"),
  Row("position/table", f"{EMBED}.position_embeddings", "1TD->TD"),
  *linear(
    "patches/projection", f"{EMBED}.patch_embeddings.projection",
    "DIYX->YXID", "D->D",
  ),
  *layer_norm("stack/norm_attention", f"{BLOCK}layernorm_before"),
  *_block(
    "attention/query", "attention.attention.query", "(NH)D->DNH", "(NH)->NH"
  ),
  *_block("attention/key", "attention.attention.key", "(KH)D->DKH", "(KH)->KH"),
  *_block(
    "attention/value", "attention.attention.value", "(KH)D->DKH", "(KH)->KH"
  ),
  *_block("attention/out", "attention.output.dense", "D(NH)->NHD", "D->D"),
  *layer_norm("stack/norm_mlp", f"{BLOCK}layernorm_after"),
  *_block("mlp/up", "intermediate.dense", "FD->DF", "F->F"),
  *_block("mlp/down", "output.dense", "DF->FD", "D->D"),
  *layer_norm("norm", "vit.layernorm"),
  *linear("head", "classifier", "VD->DV", "V->V"),
)  # fmt: skip


def settings(c: Settings) -> dict:
  """The keywords of `models.vit` for a config.json."""
  c.only("qkv_bias", True)
  return dict(
    classes=classes_of(c),
    image_size=c.integer("image_size", 224),
    channels=c.integer("num_channels", 3),
    patch=c.integer("patch_size", 16),
    layers=c.integer("num_hidden_layers", 12),
    dim=c.integer("hidden_size", 768),
    heads=c.integer("num_attention_heads", 12),
    mlp_dim=c.integer("intermediate_size", 3072),
    activation=c.among("hidden_act", ACTIVATIONS, "gelu"),
    norm_eps=c.number("layer_norm_eps", 1e-12),
    position="learned",
    pool="token",
    registers=0,
    rotary_base=100.0,
    init_std=c.number("initializer_range", 0.02, zero=True),
    dropout=0.0,
    remat="none",
    unroll=1,
    kernel="auto",
    norm_before=False,
    patch_bias=True,
  )


def classes_of(c: Settings) -> int:
  """How many labels a classifier has: two, where nothing is said."""
  labels = c.value("id2label")
  if labels is None:
    return c.integer("num_labels", 2)
  if not isinstance(labels, dict) or not labels:
    raise c.fault("id2label", "an object of one name for each label")
  return len(labels)


def config(k: Mapping) -> dict:
  """config.json for a vit; what it cannot say is left out."""
  return dict(
    hidden_size=k["dim"],
    num_hidden_layers=k["layers"],
    num_attention_heads=k["heads"],
    intermediate_size=k["mlp_dim"] or 4 * k["dim"],
    hidden_act=THEIR_ACTIVATIONS.get(k["activation"]),
    hidden_dropout_prob=k["dropout"],
    attention_probs_dropout_prob=0.0,
    initializer_range=k["init_std"] or 0.02,
    layer_norm_eps=k["norm_eps"],
    image_size=k["image_size"],
    patch_size=k["patch"],
    num_channels=k["channels"],
    qkv_bias=True,
    **labels_of(k),
  )


def labels_of(k: Mapping) -> dict:
  """Names of the labels; a model knows how many there are."""
  names = [f"LABEL_{i}" for i in range(k["classes"] or 0)]
  return dict(
    id2label={str(i): name for i, name in enumerate(names)},
    label2id={name: i for i, name in enumerate(names)},
  )


VIT = Family(
  model_type="vit",
  architecture="ViTForImageClassification",
  prefix="vit.",
  rows=ROWS,
  settings=settings,
  config=config,
  kind="vit",
  pipeline="image-classification",
  ignored=("vit.embeddings.mask_token",),
)
