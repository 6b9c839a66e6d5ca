"""How near drawn images come to held-out ones, by how they are drawn.

  python -m experiments.diffusion.steps JUDGE DIT [LATENT] --out=results.jsonl \
      --picture=steps.png

JUDGE is a run of configs/digits.py:resnet, by whose features images are
compared; the others are runs of configs/dit.py:tiny,digits and
configs/latent.py:tiny,digits, by the average of their parameters. What drawing
costs is how often the model is asked: Heun's method asks twice a step.
"""

import argparse
import json

from aigc_jax import run
from aigc_jax.evaluators.drawn import Comparison
from aigc_jax.scaling import pictures

# On the straight path of these runs a step of DDIM is one of Euler's.
STEPS = {"euler": (1, 2, 4, 8, 16, 32), "heun": (1, 2, 4, 8, 16)}
GUIDANCE = (1.0, 2.0)


def rows_of(name: str, judge: str):
  """A dict of scores for each way of drawing."""
  drawing = run.load(name, weights="average")
  config = drawing.config
  features = run.load(judge).features()
  held = run.open_eval(
    config, split="validation", batches=None, tokenizer=drawing.tokenizer
  )
  pixels = {key: config["data"][key] for key in ("mean", "std")}
  against = Comparison(features, held, **pixels, most=None)
  for guidance in GUIDANCE:
    for sampler, counts in STEPS.items():
      for steps in counts:
        images = against.draw(
          drawing.sampler(
            sampler=sampler, steps=steps, guidance=guidance, seed=0
          )
        )
        scores = against.scores(images)
        yield dict(
          run=config["model"]["kind"], step=drawing.step, sampler=sampler,
          steps=steps, asked=steps * (2 if sampler == "heun" else 1),
          guidance=guidance, images=len(images),
          **{key: float(e.value) for key, e in scores.items()},
        )  # fmt: skip


def picture(rows: list[dict], training: float):
  """FID by how often the model is asked; a panel for each run and guidance."""
  plt = pictures.plots()
  kinds = dict.fromkeys((row["run"], row["guidance"]) for row in rows)
  figure, axes = plt.subplots(
    1, len(kinds), figsize=(4.2 * len(kinds), 3.4), layout="constrained",
    sharey=True, squeeze=False,
  )  # fmt: skip
  for axis, (kind, guidance) in zip(axes[0], kinds, strict=True):
    for color, sampler in zip(pictures.PALETTE, STEPS, strict=False):
      drawn = [
        row
        for row in rows
        if (row["run"], row["guidance"]) == (kind, guidance)
        and row["sampler"] == sampler
      ]
      axis.plot(
        [row["asked"] for row in drawn], [row["fid"] for row in drawn],
        marker="o", color=color, label=sampler,
      )  # fmt: skip
    axis.axhline(training, color="0.4", linestyle="--", label="training images")
    axis.set(
      xscale="log", yscale="log", xlabel="times the model is asked",
      title=f"{kind}, guidance {guidance:g}",
    )  # fmt: skip
    axis.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    ticks = (0.1, 0.2, 0.5, 1, 2, 4)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  axes[0][0].set_ylabel("FID")
  axes[0][0].legend(frameon=False)
  return figure


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("judge")
  parser.add_argument("runs", nargs="+")
  parser.add_argument("--out", required=True)
  parser.add_argument("--picture", required=True)
  # What training images themselves get: `evaluate --features` says it.
  parser.add_argument("--training", type=float, required=True)
  given = parser.parse_args()
  rows = []
  for name in given.runs:
    for row in rows_of(name, given.judge):
      rows.append(row)
      print(json.dumps(row), flush=True)
  with open(given.out, "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  print(pictures.save(picture(rows, given.training), given.picture))


if __name__ == "__main__":
  main()
