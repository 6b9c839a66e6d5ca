"""How large activations are, and how far steps move them, by a model's size.

  python -m aigc_jax.coordinates --config=C.py --widths=64,128,256,512
    [--depths=2,4,8,16] [--parametrizations=standard,mup] [--steps=4]
    [--seeds=2] [--grow=heads|head_dim] [--rate=0.01]
    [--out=coordinates.png,coordinates.json]

Decoders of these widths (and at the config's width, of these depths) take a few
large steps on one batch; of each activation the slope of its size, and of how
far it has moved, against the size of the model, is printed and drawn on
logarithmic axes. With model.parametrization=mup what steps move has slopes near
0 in the width, with completep in the depth too; with standard it has not. Where
the config names no base model, that is the smallest of them.

With the width heads become more, or with --grow=head_dim wider. --rate is the
learning rate of the steps: a small one would hide what grows. Weight decay, the
warm-up and what only shows later are not seen here. The batch is of data.batch
rows of data.length, of ids with the frequencies of words; no data is read.
"""

import json

from absl import flags

from aigc_jax import command, files, run
from aigc_jax.errors import BadConfig, choose
from aigc_jax.layers.parametrization import KINDS
from aigc_jax.scaling import coordinate_pictures, coordinates, pictures
from aigc_jax.timing.stepping import zipf_batch

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_list("widths", [], "of the residual stream, model.dim")
  flags.DEFINE_list("depths", [], "model.layers, at the config's width")
  flags.DEFINE_list("parametrizations", [], "default: the config's")
  flags.DEFINE_integer("steps", 4, "how many are taken")
  flags.DEFINE_integer("seeds", 2, "models of each size; of them the mean")
  flags.DEFINE_enum("grow", "heads", coordinates.GROWS, "what with the width")
  flags.DEFINE_float("rate", 0.01, "optim.learning_rate of the steps")
  flags.DEFINE_list("out", ["coordinates.png"], "x.png, x.json; '' for none")


def main() -> int:
  """The command; the exit status."""
  axes, outs = _axes(), _outs()
  config = run.read(FLAGS.config)
  command.quiet_compiler()
  config["optim"]["learning_rate"] = FLAGS.rate
  kinds = FLAGS.parametrizations or [
    config["model"].get("parametrization", "standard")
  ]
  asked = [(kind, axis) for kind in kinds for axis in axes]
  for kind, axis in asked:  # before the first is paid for
    choose(kind, KINDS, "--parametrizations")
    coordinates.sized(config, axis, axes[axis], kind, FLAGS.grow)
  found = []
  for kind, axis in asked:
    made = coordinates.series(
      config, axis, axes[axis], parametrization=kind, batches=zipf_batch,
      steps=FLAGS.steps, seeds=FLAGS.seeds, grow=FLAGS.grow,
      say=lambda text: print(text, flush=True),
    )  # fmt: skip
    print(f"\n{coordinate_pictures.as_text(made)}\n", flush=True)
    found.append(made)
  for out in outs:
    if out.endswith(".json"):
      table = [coordinate_pictures.as_json(made) for made in found]
      files.write_out(out, json.dumps(table, indent=1, allow_nan=False) + "\n")
    else:
      coordinate_pictures.draw(found, out)
    print(out)
  return 0


def _axes() -> dict[str, list[int]]:
  """{"width": sizes, "depth": sizes}, those that are asked for."""
  if FLAGS.config is None:
    raise BadConfig(
      "--config=PATH.py is missing, such as configs/quickstart.py"
    )
  axes = {"width": _numbers("widths"), "depth": _numbers("depths")}
  if not any(axes.values()):
    raise BadConfig("--widths=64,128,256 or --depths=2,4,8 is missing")
  if not axes["width"]:
    command.check_read({"grow": "--widths"})
  for name in ("steps", "seeds"):
    if FLAGS[name].value < 1:
      raise BadConfig(f"--{name}={FLAGS[name].value}: expected 1 or more")
  if not 0 < FLAGS.rate < float("inf"):
    raise BadConfig(f"--rate={FLAGS.rate}: expected above 0, such as 0.01")
  return {axis: sizes for axis, sizes in axes.items() if sizes}


def _outs() -> list[str]:
  outs = [out for out in FLAGS.out if out]
  for out in outs:
    if not out.endswith(".json"):
      pictures.check_kind(out)
    command.check_out(out)
  return outs


def _numbers(flag: str) -> list[int]:
  """The whole numbers of a flag; BadConfig for others."""
  given = FLAGS[flag].value
  try:
    return [int(word) for word in given]
  except ValueError:
    raise BadConfig(
      f"--{flag}={','.join(given)}: expected whole numbers, such as 64,128,256"
    ) from None


if __name__ == "__main__":
  define_flags()
  command.main(main, config=True, alone=True)
