"""What every preset means, a text file each; a change of meaning is a diff.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m tests.golden.written

writes them anew. A file has the config as it is read, and of each parameter the
shape, the dtype, the deviation of its fresh values, weight decay, the factor of
the learning rate, and how it lies on a mesh of fsdp 4 x tensor 2.
"""

import importlib
import math
import pathlib
from collections.abc import Iterator, Mapping

import jax
from flax import linen as nn

from aigc_jax import run, sharding, tree
from aigc_jax.optim.groups import treatments

FOLDER = pathlib.Path(__file__).parent / "presets"
FAMILIES = (
  "clip", "siglip",
  "gpt2", "gpt3", "llama", "mistral", "qwen", "gemma", "t5", "transformer",
  "bert", "roberta", "distilbert", "vit", "resnet", "digits", "dit", "vae",
  "gan", "vq", "whisper", "ctc", "spoken_digits", "dalle", "unet", "tts",
  "prompted", "latent",
)  # fmt: skip
ALONE = ("quickstart", "text_file")  # configs that are one run


def names() -> list[str]:
  """ "gpt2:small" for every preset, "quickstart" for a config that is one."""
  found = list(ALONE)
  for family in FAMILIES:
    module = importlib.import_module(f"configs.{family}")
    found += [f"{family}:{size}" for size in module.SIZES]
  return found


def path_of(name: str) -> pathlib.Path:
  return FOLDER / f"{name.replace(':', '.')}.txt"


def config_of(name: str):
  """The config of a preset, as its file gives it."""
  module, _, size = name.partition(":")
  get_config = importlib.import_module(f"configs.{module}").get_config
  return get_config(size) if size else get_config()


def text_of(name: str) -> str:
  """What the file of a preset has to say."""
  module, _, size = name.partition(":")
  config = config_of(name)
  config.mesh.update(fsdp=4, tensor=2)
  config = run.read(config)
  lines = [f"configs/{module}.py{f':{size}' if size else ''}", ""]
  lines += [f"{key} = {value!r}" for key, value in _flat(config)]
  lines += ["", "parameter: shape dtype, deviation, decay, rate, mesh axes", ""]
  return "\n".join(lines + _parameters(config)) + "\n"


def count_of(name: str, part: str = "") -> int:
  """Parameters of a preset, or of a part of it, as its file has them.

  That the file is right is test_presets.py's: so counts need no model.
  """
  text = path_of(name).read_text().partition("mesh axes\n\n")[2]
  lines = [line.split(": ") for line in text.splitlines()]
  return sum(
    math.prod(int(n) for n in about.partition(" ")[0].split("x") if n)
    for path, about in lines
    if path.startswith(part)
  )


def _flat(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
  for key, value in sorted(config.items()):
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _parameters(config: run.Config) -> list[str]:
  declared = run.declared_params(run.model_of(config))
  boxed = jax.tree.leaves(
    declared, is_leaf=lambda x: isinstance(x, sharding.Declared)
  )
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(declared),
    sharding.of_tree(declared, run.make_mesh(config)),
  )
  optim = config["optim"]
  treated = treatments(params, optim["groups"], optim["weight_decay"])
  lines = []
  for box, (name, x) in zip(boxed, tree.flat(params).items(), strict=True):
    axes = ", ".join(
      "-" if a is None else "+".join(a) if isinstance(a, tuple) else a
      for a in x.sharding.spec
    )
    lines.append(
      f"{name}: {'x'.join(map(str, x.shape))} {x.dtype}, "
      f"{box.deviation:.6g}, {treated[name].weight_decay:g}, "
      f"{treated[name].learning_rate_factor:g}, {axes}"
    )
  return lines


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  for name in names():
    path_of(name).write_text(text_of(name))
  print(f"{len(names())} files in {FOLDER}")


if __name__ == "__main__":
  main()
