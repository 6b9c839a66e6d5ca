"""ResNet, its running statistics with its weights."""

import itertools
from collections.abc import Mapping

from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family, Row
from aigc_jax.hf.vit import classes_of, labels_of

# More stages and blocks than any has; rows of leaves that a model lacks are
# left out.
STAGES, BLOCKS = 5, 64
CONVOLUTIONS = 3  # of a block, at most


def _unit(conv: str, norm: str, theirs: str) -> tuple[Row, ...]:
  """A convolution without a bias, and the norm behind it."""
  theirs_norm = f"{theirs}.normalization"
  return (
    Row(f"{conv}/w", f"{theirs}.convolution.weight", "DIYX->YXID"),
    Row(f"{norm}/scale", f"{theirs_norm}.weight", "D->D"),
    Row(f"{norm}/bias", f"{theirs_norm}.bias", "D->D"),
    Row(f"stats/{norm}/mean", f"{theirs_norm}.running_mean", "D->D"),
    Row(f"stats/{norm}/var", f"{theirs_norm}.running_var", "D->D"),
  )


def _block(ours: str, theirs: str) -> tuple[Row, ...]:
  rows = list(
    _unit(f"{ours}/shortcut", f"{ours}/norm_shortcut", f"{theirs}.shortcut")
  )
  for i in range(CONVOLUTIONS):
    conv, norm = f"{ours}/conv{i + 1}", f"{ours}/norm{i + 1}"
    rows += _unit(conv, norm, f"{theirs}.layer.{i}")
  return tuple(rows)


def _rows() -> tuple[Row, ...]:
  rows = list(_unit("stem/conv", "stem/norm", "resnet.embedder.embedder"))
  for s, b in itertools.product(range(STAGES), range(BLOCKS)):
    theirs = f"resnet.encoder.stages.{s}.layers.{b}"
    rows += _block(f"stage{s}_block{b}", theirs)
  head = "classifier.1"
  return (
    *rows,
    Row("head/w", f"{head}.weight", "VD->DV"),
    Row("head/bias", f"{head}.bias", "V->V"),
  )


def settings(c: Settings) -> dict:
  """The keywords of `models.resnet` for a config.json.

  It does not say how large images are: 224, until somebody says otherwise.
  """
  c.only("hidden_act", "relu")
  c.only("downsample_in_first_stage", False)
  c.only("downsample_in_bottleneck", False)
  return dict(
    classes=classes_of(c),
    image_size=224,
    channels=c.integer("num_channels", 3),
    blocks=_numbers(c, "depths", (3, 4, 6, 3)),
    widths=_numbers(c, "hidden_sizes", (256, 512, 1024, 2048)),
    bottleneck=c.among("layer_type", LAYERS, "bottleneck"),
    stem="large",
    stem_dim=c.integer("embedding_size", 64),
    norm_eps=1e-5,  # of torch's layers, which are told no other
    norm_momentum=0.1,
    zero_init_residual=False,
    init_std=None,
    remat="none",
  )


LAYERS = {"bottleneck": True, "basic": False}


def _numbers(c: Settings, key: str, default: tuple) -> tuple[int, ...]:
  """A list of a whole number for each stage."""
  values = c.value(key)
  if values is None:
    return default
  legal = isinstance(values, list) and 0 < len(values) <= STAGES
  if not legal or not all(type(v) is int and 0 < v < 2**20 for v in values):
    raise c.fault(key, f"a list of 1 to {STAGES} whole numbers")
  if key == "depths" and max(values) > BLOCKS:
    raise c.fault(key, f"at most {BLOCKS} blocks in a stage")
  return tuple(values)


def config(k: Mapping) -> dict:
  """config.json for a resnet; what it cannot say is left out."""
  stages = [f"stage{i}" for i in range(1, len(k["blocks"]) + 1)]
  return dict(
    num_channels=k["channels"],
    embedding_size=k["stem_dim"],
    hidden_sizes=list(k["widths"]),
    depths=list(k["blocks"]),
    layer_type="bottleneck" if k["bottleneck"] else "basic",
    hidden_act="relu",
    downsample_in_first_stage=False,
    downsample_in_bottleneck=False,
    stage_names=["stem", *stages],
    out_features=stages[-1:],
    out_indices=[len(stages)],
    **labels_of(k),
  )


def limits(k: Mapping) -> list[str]:
  """What transformers' own ResNet has no word for."""
  faults = []
  if k["stem"] != "large":
    faults.append(f"stem={k['stem']!r}")
  if k["norm_eps"] != 1e-5:
    faults.append(f"norm_eps={k['norm_eps']}")
  return faults


RESNET = Family(
  model_type="resnet",
  architecture="ResNetForImageClassification",
  prefix="resnet.",
  rows=_rows(),
  settings=settings,
  config=config,
  kind="resnet",
  pipeline="image-classification",
  # How many batches there were; with a momentum nothing reads it.
  ignored=("*.num_batches_tracked",),
  limits=limits,
)
