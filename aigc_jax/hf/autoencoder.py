"""diffusers' AutoencoderKL, the VAE of latent diffusion, and its VQModel."""

import itertools
from collections.abc import Iterator, Mapping

from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family, Row
from aigc_jax.layers.report import STATS

# More stages and blocks than any has; rows of leaves that a model lacks are
# left out.
STAGES, BLOCKS = 8, 8
CONV, VECTOR = "DIYX->YXID", "D->D"
# Our layers of a residual block and theirs; the convolutions first.
RESIDUAL = {
  "conv_in": "conv1", "conv_out": "conv2", "shortcut": "conv_shortcut",
}  # fmt: skip
NORMS = {"norm_in": "norm1", "norm_out": "norm2"}
READ = {
  "query": ("to_q", "(NH)D->DNH", "(NH)->NH"),
  "key": ("to_k", "(KH)D->DKH", "(KH)->KH"),
  "value": ("to_v", "(KH)D->DKH", "(KH)->KH"),
  "out": ("to_out.0", "D(NH)->NHD", "D->D"),
}
# Of the attention, as it was written before.
BEFORE = {
  ".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.",
  ".proj_attn.": ".to_out.0.",
}  # fmt: skip


def _convolution(ours: str, theirs: str) -> tuple[Row, Row]:
  return (
    Row(f"{ours}/conv/w", f"{theirs}.weight", CONV),
    Row(f"{ours}/bias", f"{theirs}.bias", VECTOR),
  )


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
  return (
    Row(f"{ours}/scale", f"{theirs}.weight", VECTOR),
    Row(f"{ours}/bias", f"{theirs}.bias", VECTOR),
  )


def _block(ours: str, theirs: str) -> Iterator[Row]:
  for mine, other in RESIDUAL.items():
    yield from _convolution(f"{ours}/{mine}", f"{theirs}.{other}")
  for mine, other in NORMS.items():
    yield from _norm(f"{ours}/{mine}", f"{theirs}.{other}")


def _reads(ours: str, theirs: str) -> Iterator[Row]:
  yield from _norm(f"{ours}/norm_attention", f"{theirs}.group_norm")
  for mine, (other, axes, bias) in READ.items():
    path = f"{ours}/attention/{mine}"
    yield Row(f"{path}/w", f"{theirs}.{other}.weight", axes)
    yield Row(f"{path}/bias", f"{theirs}.{other}.bias", bias)


def _way(part: str, way: str, size: str) -> Iterator[Row]:
  """The rows of an encoder or a decoder but for what makes its code."""
  yield from _convolution(f"{part}/conv_in", f"{part}.conv_in")
  for i, j in itertools.product(range(STAGES), range(BLOCKS)):
    ours, theirs = f"{part}/{way}{i}_{j}", f"{part}.{way}_blocks.{i}"
    yield from _block(ours, f"{theirs}.resnets.{j}")
    yield from _reads(f"{ours}_read", f"{theirs}.attentions.{j}")
  for i in range(STAGES):
    theirs = f"{part}.{way}_blocks.{i}.{way}samplers.0"
    # A module that resizes has a convolution with a bias in it.
    yield from _convolution(f"{part}/{size}{i}/conv", f"{theirs}.conv")
  for j in range(2):
    yield from _block(f"{part}/middle{j}", f"{part}.mid_block.resnets.{j}")
  yield from _reads(f"{part}/middle0_read", f"{part}.mid_block.attentions.0")
  yield from _norm(f"{part}/norm_out", f"{part}.conv_norm_out")
  yield from _convolution(f"{part}/conv_out", f"{part}.conv_out")


WAYS = (
  *_way("encoder", "down", "half"),
  *_way("decoder", "up", "double"),
)
ROWS = (
  *WAYS,
  Row("encoder/code/w", "quant_conv.weight", "ZD11->DZ"),
  Row("encoder/code/bias", "quant_conv.bias", "Z->Z"),
  Row("decoder/code/w", "post_quant_conv.weight", "DZ11->ZD"),
  Row("decoder/code/bias", "post_quant_conv.bias", "D->D"),
)
VQ_ROWS = (
  *WAYS,
  Row("encoder/code/w", "quant_conv.weight", "DF11->FD"),
  Row("encoder/code/bias", "quant_conv.bias", "D->D"),
  Row("decoder/code/w", "post_quant_conv.weight", "FD11->DF"),
  Row("decoder/code/bias", "post_quant_conv.bias", "F->F"),
  Row("book/table", "quantize.embedding.weight", "VD->VD"),
)


def settings(c: Settings) -> dict:
  """The keywords of `models.vae` for a config.json.

  What pipelines subtract from codes and multiply them by, shift_factor and
  scaling_factor, is no part of it.
  """
  projects = c.flag("use_quant_conv", True)
  if c.flag("use_post_quant_conv", True) != projects:
    raise c.fault(
      "use_post_quant_conv", f"{projects}, as use_quant_conv is".lower()
    )
  return _nets(c) | dict(
    latent=c.integer("latent_channels", 4),
    places=True,
    projects=projects,
    scales=False,
  )


def vq_settings(c: Settings) -> dict:
  """The keywords of `models.vq` for a config.json.

  Neither scaling_factor is a part of it, nor lookup_from_codebook, which says
  what the way back may be given.
  """
  c.only("norm_type", "group")
  dim = c.integer("latent_channels", 3)
  c.only("vq_embed_dim", dim)
  return _nets(c) | dict(
    quantizer="gradient",
    codes=c.integer("num_vq_embeddings", 256),
    dim=dim,
    levels=(),
    decay=0.99,
    revive=0.1,
    cosine=False,
  )


def _nets(c: Settings) -> dict:
  """What both have: the nets from an image to its places, and back."""
  c.only("act_fn", "silu")
  c.only("mid_block_add_attention", True)
  channels = c.integer("in_channels", 3)
  c.only("out_channels", channels)
  widths = _widths(c)
  size = c.integer("sample_size", 32)
  small = 2 ** (len(widths) - 1)
  if size % small:
    raise c.fault("sample_size", f"a multiple of {small}")
  blocks = c.integer("layers_per_block", 1)
  if blocks >= BLOCKS:
    raise c.fault("layers_per_block", f"below {BLOCKS}")
  return dict(
    image_size=size,
    channels=channels,
    widths=widths,
    blocks=blocks,
    attention=_attention(c, size, len(widths)),
    groups=c.integer("norm_num_groups", 32),
    activation="silu",
    remat="none",
    kernel="auto",
  )


def _widths(c: Settings) -> tuple[int, ...]:
  values, groups = (
    c.value("block_out_channels"),
    c.integer("norm_num_groups", 32),
  )
  legal = isinstance(values, list) and 0 < len(values) <= STAGES
  if not legal or not all(type(v) is int and 0 < v < 2**20 for v in values):
    raise c.fault("block_out_channels", f"1 to {STAGES} whole numbers")
  if any(v % groups or v % 2 for v in values):
    raise c.fault(
      "block_out_channels", f"even multiples of norm_num_groups={groups}"
    )
  return tuple(values)


def _attention(c: Settings, size: int, stages: int) -> tuple[int, ...]:
  """Rows of the stages whose places read each other, either way the same."""
  found = []
  for key, way, order in (
    ("down_block_types", "DownEncoder", 1), ("up_block_types", "UpDecoder", -1),
  ):  # fmt: skip
    table = {f"{way}Block2D": False, f"Attn{way}Block2D": True}
    named = c.words(key, table, stages)
    if named is None:
      raise c.fault(key, f"{stages} types of blocks")
    found.append(named[::order])
  if found[0] != found[1]:
    raise c.fault("up_block_types", "those of down_block_types, backwards")
  return tuple(size >> i for i, reads in enumerate(found[0]) if reads)


def config(k: Mapping) -> dict:
  """config.json for a vae; what it cannot say is left out."""
  plain = dict(use_quant_conv=False, use_post_quant_conv=False)
  found = _nets_config(k) | dict(latent_channels=k["latent"])
  return found if k["projects"] else found | plain


def vq_config(k: Mapping) -> dict:
  """config.json for a vq; what it cannot say is left out."""
  return _nets_config(k) | dict(
    latent_channels=k["dim"],
    vq_embed_dim=k["dim"],
    num_vq_embeddings=k["codes"],
  )


def _nets_config(k: Mapping) -> dict:
  rows = [k["image_size"] >> i for i in range(len(k["widths"]))]
  reads = ["Attn" if n in tuple(k["attention"]) else "" for n in rows]
  return dict(
    in_channels=k["channels"],
    out_channels=k["channels"],
    block_out_channels=list(k["widths"]),
    layers_per_block=k["blocks"],
    down_block_types=[f"{x}DownEncoderBlock2D" for x in reads],
    up_block_types=[f"{x}UpDecoderBlock2D" for x in reads[::-1]],
    norm_num_groups=k["groups"],
    sample_size=k["image_size"],
    act_fn=k["activation"],
  )


AUTOENCODER_KL = Family(
  model_type="AutoencoderKL",
  architecture="AutoencoderKL",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  kind="vae",
  pipeline="image-to-image",
  library="diffusers",
  spellings=BEFORE,
)
VQ_MODEL = Family(
  model_type="VQModel",
  architecture="VQModel",
  prefix="",
  rows=VQ_ROWS,
  settings=vq_settings,
  config=vq_config,
  kind="vq",
  pipeline="image-to-image",
  library="diffusers",
  spellings=BEFORE,
  unsaid=(f"{STATS}/book/counts",),
)
