"""Makes tests/hf/golden/autoencoder*.json, vq_model.json: what diffusers says.

  python -m tests.hf.make_autoencoder_golden      (needs torch and diffusers)

Of tiny models whose weights follow from their names, so that the test needs
neither of the two.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"
SIZE = 8
NETS = dict(
  in_channels=1, out_channels=1, block_out_channels=(4, 6),
  down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
  up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
  layers_per_block=1, latent_channels=3, norm_num_groups=2, sample_size=SIZE,
)  # fmt: skip
# The class of each, and its keywords. `plain` is of the kind of Stable
# Diffusion 3's and Flux's.
MODELS = {
  "autoencoder": ("AutoencoderKL", NETS),
  "autoencoder_plain": (
    "AutoencoderKL",
    NETS
    | dict(
      use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609,
      scaling_factor=1.5305,
    ),
  ),
  "vq_model": ("VQModel", NETS | dict(num_vq_embeddings=12, vq_embed_dim=3)),
}  # fmt: skip


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
  """Of the tensor of this name: the same numbers everywhere."""
  draw = np.random.RandomState(zlib.crc32(name.encode()))
  return (0.3 * draw.standard_normal(shape)).astype(np.float32)


def images() -> np.ndarray:
  draw = np.random.RandomState(0)
  return draw.standard_normal((2, SIZE, SIZE, 1)).astype(np.float32)


def said(name: str) -> Mapping:
  import diffusers
  import torch

  kind, keywords = MODELS[name]
  model = getattr(diffusers, kind)(**keywords)
  shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
  model.load_state_dict(
    {name: torch.tensor(weight(name, s)) for name, s in shapes.items()}
  )
  given = torch.tensor(images().transpose(0, 3, 1, 2))
  with torch.no_grad():
    found = _coded(model, given) if kind == "VQModel" else _told(model, given)
  config = {k: v for k, v in model.config.items() if k[0] != "_"}
  return dict(config=config | {"_class_name": kind}, shapes=shapes, **found)


def _told(model, given) -> dict:
  code = model.encode(given).latent_dist
  made = model.decode(code.mean).sample
  found = dict(mean=code.mean, deviation=code.std, pixels=made)
  return {name: _ours(x.numpy()) for name, x in found.items()}


def _coded(model, given) -> dict:
  """Codes lie along the rows."""
  vectors = model.encode(given).latents
  codes = model.quantize(vectors)[2][2].reshape(len(given), -1)
  return dict(
    codes=codes.tolist(), pixels=_ours(model.decode(vectors).sample.numpy())
  )


def _ours(x: np.ndarray) -> list:
  return np.round(x.transpose(0, 2, 3, 1).astype(float), 6).tolist()


def main() -> None:
  for name in MODELS:
    (FOLDER / f"{name}.json").write_text(json.dumps(said(name)) + "\n")


if __name__ == "__main__":
  main()
