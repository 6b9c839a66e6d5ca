"""What a recogniser must beat: the text of the training clip that is nearest.

  python -m experiments.speech.baseline --folder=digits
  python -m experiments.speech.baseline --prompts=prompts

Nearest by the mean square between log-mel spectrograms of 40 bands, each
stretched to 64 frames. Clips, split and word errors are those of
configs/spoken_digits.py, or of recorded.py beside this file.
"""

import json

import jax
import numpy as np
from absl import app, flags

from aigc_jax import run
from aigc_jax.evaluators.word_errors import word_errors
from aigc_jax.layers.mel import HOP, log_mel
from configs import spoken_digits
from experiments.speech import recorded

FOLDER = flags.DEFINE_string("folder", "digits", "made by speak.py")
PROMPTS = flags.DEFINE_string("prompts", None, "written by prompts.py, instead")
ROOT = flags.DEFINE_string("root", "~/.cache/aigc_jax", "data.root")
FRAMES = 64


def main(argv) -> None:
  """Prints the errors as JSON."""
  del argv
  if PROMPTS.value:
    config = recorded.get_config(PROMPTS.value)
  else:
    config = spoken_digits.get_config("ctc")
    config.data.sources = (dict(kind="folder", path=FOLDER.value, weight=1.0),)
  config.data.root = ROOT.value
  config = run.read(config)
  data, spectrogram = run.data_of(config), jax.jit(log_mel, static_argnums=2)

  def features(clip: np.ndarray) -> np.ndarray:
    whole = np.zeros((1, data.samples), np.int16)
    whole[0, : len(clip)] = clip
    mel = np.asarray(spectrogram(whole, np.array([len(clip)]), 40))[0]
    at = np.linspace(0, len(clip) // HOP - 1, FRAMES).round().astype(int)
    return mel[at].ravel()

  def of(split: str) -> tuple[np.ndarray, list[str]]:
    (view,) = data.heldout(split=split, model=config["model"]).views
    pairs = [view.utterance(i) for i in range(len(view))]
    return np.stack([features(c) for c, _ in pairs]), [t for _, t in pairs]

  (known, texts), (asked, said) = of("train"), of("validation")
  nearest = [
    texts[int(np.argmin(np.square(known - x).sum(axis=1)))] for x in asked
  ]
  found = word_errors(nearest, said)
  print(json.dumps({name: e.value for name, e in found.items()} | {
    "train": len(texts), "heldout": len(said),
  }))  # fmt: skip


if __name__ == "__main__":
  app.run(main)
