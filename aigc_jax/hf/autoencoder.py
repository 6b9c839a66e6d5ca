"""diffusers' AutoencoderKL, the VAE of latent diffusion."""

import itertools
from collections.abc import Iterator, Mapping

from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family, Row

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


ROWS = (
  *_way("encoder", "down", "half"),
  *_way("decoder", "up", "double"),
  Row("encoder/code/w", "quant_conv.weight", "ZD11->DZ"),
  Row("encoder/code/bias", "quant_conv.bias", "Z->Z"),
  Row("decoder/code/w", "post_quant_conv.weight", "DZ11->ZD"),
  Row("decoder/code/bias", "post_quant_conv.bias", "D->D"),
)


def settings(c: Settings) -> dict:
  """The keywords of `models.vae` for a config.json.

  What pipelines multiply codes by, scaling_factor, is no part of it.
  """
  c.only("act_fn", "silu")
  c.only("use_quant_conv", True)
  c.only("use_post_quant_conv", True)
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
    latent=c.integer("latent_channels", 4),
    places=True,
    blocks=blocks,
    attention=_attention(c, size, len(widths)),
    groups=c.integer("norm_num_groups", 32),
    scales=False,
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
  rows = [k["image_size"] >> i for i in range(len(k["widths"]))]
  reads = ["Attn" if n in tuple(k["attention"]) else "" for n in rows]
  return dict(
    in_channels=k["channels"],
    out_channels=k["channels"],
    block_out_channels=list(k["widths"]),
    layers_per_block=k["blocks"],
    down_block_types=[f"{x}DownEncoderBlock2D" for x in reads],
    up_block_types=[f"{x}UpDecoderBlock2D" for x in reads[::-1]],
    latent_channels=k["latent"],
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
