"""Losses and gradient norms of three steps, by family and dtype.

  python -m tests.golden.losses [NAME ...]

writes them anew. They are of small models of the presets, on batches that are
drawn here, so what changes them is what a model computes, how it starts, its
objective or its optimizer. Another processor sums in another order: TOLERANCE
says how far a number may be, relatively.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from aigc_jax import run, sharding
from aigc_jax.timing import stepping, switches
from tests.golden import written

FILE = pathlib.Path(__file__).parent / "losses.json"
STEPS = 3
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
NAMES = ("train/loss", "norm/grad")
COMMON = {"data.batch": 4, "optim.warmup_steps": 1, "optim.learning_rate": 1e-3}
NARROW = {"model.dim": 16, "model.heads": 2, "model.mlp_dim": 24}
TEXT = {"model.vocab": 64, "data.length": 12, "data.tokenizer_vocab": 32}
LM = NARROW | TEXT | {
  "model.layers": 2, "model.kv_heads": 1, "model.head_dim": 8,
  "objective.chunk": 16, "objective.logits": "float32",
}  # fmt: skip
PIXELS = {"data.image_size": 16, "model.image_size": 16}
TWO_STACKS = NARROW | {
  "model.encoder_layers": 2, "model.decoder_layers": 2, "model.head_dim": 8,
}  # fmt: skip
SOUND = {"data.seconds": 0.5, "data.target_length": 6, "model.bins": 8}
TOWERS = PIXELS | {
  "model.patch": 4, "model.image_dim": 16, "model.image_heads": 2,
  "model.image_layers": 2, "model.image_mlp_dim": 24, "model.text_dim": 16,
  "model.text_heads": 2, "model.text_layers": 2, "model.text_mlp_dim": 24,
  "model.text_length": 8, "model.vocab": 64, "model.embed_dim": 16,
  "data.length": 8, "data.tokenizer": "bytes",
}  # fmt: skip
WIDTHS = {"model.widths": (8, 16)}
# A preset of each family, and what makes it small.
SMALL: dict[str, dict] = {
  "gpt2:small": LM | {"model.kv_heads": 2},
  "llama:llama32_1b": LM,
  "gemma:gemma2_2b": LM | {"model.windows": (4, None)},
  "bert:base": NARROW | TEXT | {"model.layers": 2, "model.position_length": 12},
  "t5:small": TWO_STACKS | {
    "model.vocab": 64, "data.task.first_sentinel": 63, "data.length": 24,
    "data.tokenizer_vocab": 32,
  },
  "transformer:base": TWO_STACKS | {
    "model.vocab": 64, "data.tokenizer_vocab": 32, "data.source_length": 10,
    "data.target_length": 12,
  },
  "vit:s16": NARROW | PIXELS | {
    "model.layers": 2, "model.patch": 4, "model.classes": 5,
  },
  "resnet:r18": PIXELS | {
    "model.classes": 5, "model.stem_dim": 8, "model.blocks": (1, 1),
    "model.widths": (8, 16), "model.stem": "small",
  },
  "dit:s2": NARROW | PIXELS | {"model.layers": 2, "model.classes": 5},
  "unet:ddpm": PIXELS | WIDTHS | {
    "model.image_size": 8, "data.image_size": 8, "model.attention": (4,),
    "model.blocks": 1, "model.groups": 4,
  },
  "prompted:digits": NARROW | {
    "model.layers": 2, "model.text_layers": 1, "model.text_dim": 16,
    "model.text_heads": 2, "data.length": 8, "model.text_length": 8,
  },
  "vae:small": PIXELS | WIDTHS | {"model.latent": 6},
  "vq:small": PIXELS | WIDTHS | {"model.codes": 12, "model.dim": 8},
  "gan:dcgan": PIXELS | WIDTHS | {"model.latent": 6},
  "whisper:tiny": NARROW | SOUND | {
    "model.encoder_layers": 2, "model.decoder_layers": 2, "model.vocab": 300,
    "model.position_length": 6, "model.start_token": 299, "model.seconds": 0.5,
    "objective.chunk": 16,
  },
  "ctc:small": NARROW | SOUND | {"model.layers": 2},
  "tts:small": NARROW | SOUND | {
    "model.layers": 2, "model.text_layers": 1, "objective.bins": 8,
    "objective.text_dropout": 0.0, "objective.speaker_dropout": 0.0,
  },
  "clip:b32": TOWERS | {"model.text_end": 1, "data.start": 0},
  "siglip:b16": TOWERS,
}  # fmt: skip


def config_of(name: str, dtype: str) -> run.Config:
  """The preset, small, with all that is drawn at rest."""
  config = run.read(written.config_of(name))
  change = COMMON | SMALL[name] | {"compute.dtype": dtype}
  for key in ("model.dropout", "objective.label_dropout"):
    section, word = key.split(".")
    if word in config[section]:
      change[key] = 0.0
  return switches.changed(config, change)


def numbers(name: str, dtype: str) -> dict[str, list[float]]:
  """{metric: its values after each step}."""
  sizes = dict.fromkeys(sharding.AXES, 1)
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    r = run.build(config_of(name, dtype), mesh)
    step, state = r.advance(), r.init()
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for i in range(STEPS):
      state, metrics = step(state, stepping.zipf_batch(r, i))
      for key, values in found.items():
        values.append(float(np.ravel(metrics[key])[-1]))
  return found


@functools.cache
def golden() -> Mapping:
  return json.loads(FILE.read_text())


def main(names: Sequence[str]) -> None:
  """Writes the numbers of these anew, of all where none is named."""
  found = dict(golden()) if names else {}
  for name in names or SMALL:
    found[name] = {dtype: numbers(name, dtype) for dtype in TOLERANCE}
  found = {name: found[name] for name in SMALL}
  FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main(sys.argv[1:])
