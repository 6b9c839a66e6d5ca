"""Makes tests/hf/golden/autoencoder.json: what diffusers says of a tiny VAE.

  python -m tests.hf.make_autoencoder_golden      (needs torch and diffusers)

Its weights follow from their names, so that the test needs neither of the two.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "autoencoder.json"
SIZE = 8


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
  """Of the tensor of this name: the same numbers everywhere."""
  draw = np.random.RandomState(zlib.crc32(name.encode()))
  return (0.3 * draw.standard_normal(shape)).astype(np.float32)


def images() -> np.ndarray:
  draw = np.random.RandomState(0)
  return draw.standard_normal((2, SIZE, SIZE, 1)).astype(np.float32)


def said() -> Mapping:
  import torch
  from diffusers import AutoencoderKL

  model = AutoencoderKL(
    in_channels=1, out_channels=1, block_out_channels=(4, 6),
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    layers_per_block=1, latent_channels=3, norm_num_groups=2, sample_size=SIZE,
  )  # fmt: skip
  shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
  model.load_state_dict(
    {name: torch.tensor(weight(name, s)) for name, s in shapes.items()}
  )
  given = torch.tensor(images().transpose(0, 3, 1, 2))
  with torch.no_grad():
    code = model.encode(given).latent_dist
    made = model.decode(code.mean).sample
  found = dict(mean=code.mean, deviation=code.std, pixels=made)
  return dict(
    config=dict(model.config) | {"_class_name": "AutoencoderKL"},
    shapes=shapes,
    **{name: _ours(x.numpy()) for name, x in found.items()},
  )


def _ours(x: np.ndarray) -> list:
  return np.round(x.transpose(0, 2, 3, 1).astype(float), 6).tolist()


def main() -> None:
  GOLDEN.write_text(json.dumps(said()) + "\n")


if __name__ == "__main__":
  main()
