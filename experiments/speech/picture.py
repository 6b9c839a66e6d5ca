"""Spectrograms of held-out recordings, and of the same texts spoken anew.

  python -m experiments.speech.picture --workdir=runs/tts --out=spoken.png

Each column is an utterance: the recording above, what the run says below, as
long as it finds right.
"""

import matplotlib
from absl import app, flags

from aigc_jax import run
from aigc_jax.evaluators.spoken import Spoken

WORKDIR = flags.DEFINE_string("workdir", None, "of a run of configs/tts.py")
OUT = flags.DEFINE_string("out", "spoken.png", "picture to write")
COUNT = flags.DEFINE_integer("count", 5, "utterances")
STEPS = flags.DEFINE_integer("steps", 16, "from noise")
GUIDANCE = flags.DEFINE_float("guidance", 2.0, "towards the text")
WEIGHTS = flags.DEFINE_string("weights", "average", "or raw")
STEP = flags.DEFINE_integer("step", None, "checkpoint; the last by default")


def main(argv) -> None:
  """Writes the picture."""
  del argv
  matplotlib.use("Agg")
  from matplotlib import pyplot

  loaded = run.load(WORKDIR.value, weights=WEIGHTS.value, step=STEP.value)
  held = run.open_eval(
    loaded.config, split="validation", tokenizer=loaded.tokenizer
  )
  said = run.said_of(held, loaded.config, COUNT.value)
  synthesiser = loaded.synthesiser(
    sampler="euler", steps=STEPS.value, guidance=GUIDANCE.value, seed=0
  )
  made = synthesiser.mels([one.line for one in said], len(said))
  mel = Spoken(said, None, loaded.model.bins).mel
  figure, axes = pyplot.subplots(
    2, len(said), figsize=(2.4 * len(said), 4), sharex=True, sharey=True,
    layout="constrained",
  )  # fmt: skip
  for column, (one, anew) in enumerate(zip(said, made, strict=True)):
    recorded = mel(one.clip)
    for row, some in enumerate((recorded, anew)):
      axes[row, column].imshow(
        some.T, origin="lower", aspect="auto", cmap="magma", vmin=-1.0,
        vmax=1.3, extent=(0, len(some) / 100, 0, some.shape[1]),
      )  # fmt: skip
    axes[0, column].set_title(f"{one.text}, voice {one.line.speaker}")
    axes[1, column].set_xlabel("seconds")
  longest = max(len(x) for x in (*made, *(mel(one.clip) for one in said)))
  axes[0, 0].set_xlim(0, longest / 100)
  axes[0, 0].set_ylabel("recorded: band")
  axes[1, 0].set_ylabel("spoken: band")
  figure.savefig(OUT.value, dpi=110, metadata={"Software": None})
  print(f"{len(said)} utterances of step {loaded.step}: {OUT.value}")


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
