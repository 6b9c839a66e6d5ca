"""SigLIP: towers that see both ways, images read by attention, a bias."""

from collections.abc import Mapping

from aigc_jax.hf.clip import BOTH, PLAIN, shared, sizes, towers_of
from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family, Row

POOL, HEAD = "image/pool", "vision_model.head"
JOINED = (("query", "N"), ("key", "K"), ("value", "K"))
PARTS = ("NH", "KH", "KH")


def _joined() -> tuple[Row, ...]:
  """Queries, keys and values of the pooling, which lie one after the other."""
  rows = []
  for i, (name, letter) in enumerate(JOINED):
    heads = f"({letter}H)"
    rows += [
      Row(
        f"{POOL}/attention/{name}/w", f"{HEAD}.attention.in_proj_weight",
        f"{heads}D->D{letter}H", i, PARTS,
      ),
      Row(
        f"{POOL}/attention/{name}/bias", f"{HEAD}.attention.in_proj_bias",
        f"{heads}->{letter}H", i, PARTS,
      ),
    ]  # fmt: skip
  return tuple(rows)


ROWS = (
  *BOTH,
  Row(f"{POOL}/query_token/table", f"{HEAD}.probe", "1TD->TD"),
  *_joined(),
  *linear(
    f"{POOL}/attention/out", f"{HEAD}.attention.out_proj", "D(NH)->NHD", "D->D"
  ),
  *layer_norm(f"{POOL}/norm", f"{HEAD}.layernorm"),
  *linear(f"{POOL}/mlp/up", f"{HEAD}.mlp.fc1", "FD->DF", "F->F"),
  *linear(f"{POOL}/mlp/down", f"{HEAD}.mlp.fc2", "DF->FD", "D->D"),
  *linear("text_projection", "text_model.head", "ZD->DZ", "Z->Z"),
  Row("similarity/log_scale", "logit_scale", "1->"),
  Row("similarity/bias", "logit_bias", "1->"),
)


def settings(c: Settings) -> dict:
  """The keywords of `models.clip` for a config.json."""
  seen, read = c.part("vision_config"), c.part("text_config")
  seen.only("vision_use_head", True)
  found = sizes(c, 768, 64, 32_000)
  return dict(
    **found,
    **shared(c, "gelu_pytorch_tanh", 1e-6),
    patch=seen.integer("patch_size", 16),
    embed_dim=read.integer("projection_size", found["text_dim"]),
    image_pool="attention",
    image_norm_before=False,
    patch_bias=True,
    image_projection=False,
    projection_bias=True,
    text_causal=False,
    text_end=None,
    scale=10.0,
    most_scale=None,
    bias=-10.0,
    **PLAIN,
  )


def config(k: Mapping) -> dict:
  """config.json for a clip; what it cannot say is left out."""
  seen, read = towers_of(k)
  kinds = (
    {"model_type": "siglip_vision_model"}, {"model_type": "siglip_text_model"}
  )  # fmt: skip
  return dict(
    vision_config=kinds[0] | seen | dict(vision_use_head=True),
    text_config=kinds[1] | read | dict(projection_size=k["embed_dim"]),
  )


def limits(k: Mapping) -> list[str]:
  """What the architecture has no place for."""
  same = k["image_projection"] or k["embed_dim"] == k["image_dim"]
  return [] if same else [f"embed_dim={k['embed_dim']}"]


SIGLIP = Family(
  model_type="siglip",
  architecture="SiglipModel",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  limits=limits,
  kind="clip",
  pipeline="zero-shot-image-classification",
  ignored=("*.embeddings.position_ids",),
)
