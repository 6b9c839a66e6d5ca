"""Makes tests/models/golden/unets.json: what diffusers says of tiny U-Nets.

  python -m tests.models.make_unet_golden          (needs torch and diffusers)

The weights follow from the names of the parameters here, so that the test
needs neither of the two.
"""

import json
import pathlib

import numpy as np
import torch
from diffusers import UNet2DModel

from tests.models import unets

GOLDEN = pathlib.Path(__file__).parent / "golden" / "unets.json"
LAYERS = {
  "norm_in": "norm1", "norm_out": "norm2", "condition": "time_emb_proj",
  "conv_in": "conv1", "conv_out": "conv2", "shortcut": "conv_shortcut",
  "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
  "norm_attention": "group_norm",
}  # fmt: skip
WHOLE = {
  "condition/time_up": "time_embedding.linear_1",
  "condition/time_down": "time_embedding.linear_2",
  "condition/embed_label": "class_embedding", "norm": "conv_norm_out",
  "pixels_in": "conv_in", "pixels_out": "conv_out",
}  # fmt: skip
LAST = len(unets.UNET["widths"]) - 1


def theirs(name: str) -> str:
  """The name of diffusers for one of ours, such as "up1_0/norm_in/scale"."""
  path, leaf = name.rsplit("/", 1)
  if name.endswith("/conv/w"):
    path = name.removesuffix("/conv/w")
  end = "bias" if leaf == "bias" else "weight"
  if path in WHOLE:
    return f"{WHOLE[path]}.{end}"
  block, layer = path.split("/", 1)
  layer = LAYERS.get(layer.removeprefix("attention/"), layer)
  kind = "attentions" if block.endswith("_read") else "resnets"
  block = block.removesuffix("_read")
  if block.startswith("middle"):
    return f"mid_block.{kind}.{block[-1]}.{layer}.{end}"
  way = block.rstrip("0123456789_")
  stage, *rest = block.removeprefix(way).split("_")
  if way in ("half", "double"):
    blocks = "down_blocks" if way == "half" else "up_blocks"
    one = "downsamplers" if way == "half" else "upsamplers"
    i = int(stage) if way == "half" else LAST - int(stage)
    return f"{blocks}.{i}.{one}.0.{layer}.{end}"
  i = int(stage) if way == "down" else LAST - int(stage)
  return f"{way}_blocks.{i}.{kind}.{rest[0]}.{layer}.{end}"


def turned(name: str, x: np.ndarray) -> torch.Tensor:
  """Our weight as theirs is laid out."""
  if name.endswith("conv/w"):
    return torch.tensor(x.transpose(3, 2, 0, 1))
  if name.endswith("embed_label/table"):
    return torch.tensor(x)
  if name.endswith("bias"):
    return torch.tensor(x.reshape(-1))
  if "/out/w" in name:
    return torch.tensor(x.reshape(-1, x.shape[-1]).T)
  if x.ndim == 1:
    return torch.tensor(x)
  return torch.tensor(x.reshape(x.shape[0], -1).T)


def model_of(style: str) -> UNet2DModel:
  adm = style == "adm"
  keys = unets.STYLES[style]
  how = dict(
    num_class_embeds=keys["classes"] + 1, resnet_time_scale_shift="scale_shift",
    attn_norm_num_groups=4, downsample_type="resnet", upsample_type="resnet",
    attention_head_dim=4, out_channels=2,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
  ) if adm else dict(
    attention_head_dim=None, out_channels=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
  )  # fmt: skip
  return UNet2DModel(
    sample_size=8, in_channels=1, block_out_channels=keys["widths"],
    layers_per_block=1, norm_num_groups=4, norm_eps=1e-6, **how,
  )  # fmt: skip


def said(style: str) -> list:
  """What their model says of the same images, times and labels."""
  model = model_of(style)
  found = {
    theirs(name): turned(name, unets.weight(name, shape))
    for name, shape in unets.shapes_of(style).items()
  }
  model.load_state_dict(found)
  model.eval()
  given = torch.tensor(unets.images().transpose(0, 3, 1, 2))
  how = {}
  if model.class_embedding is not None:
    how["class_labels"] = torch.tensor(unets.LABELS)
  with torch.no_grad():
    out = model(given, 1000 * torch.tensor(unets.TIMES), **how).sample
  return np.round(out.numpy().transpose(0, 2, 3, 1).astype(float), 6).tolist()


def main() -> None:
  found = {style: said(style) for style in unets.STYLES}
  GOLDEN.parent.mkdir(exist_ok=True)
  GOLDEN.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
  main()
