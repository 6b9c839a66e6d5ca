"""Spoken digits, made by espeak-ng: a folder for each voice.

  apt install espeak-ng
  python -m experiments.speech.speak --out=digits

Each clip is an utterance of one to --most digits in one of several voices,
speeds and pitches; NAME.wav with NAME.txt beside it. Which digits a voice says
is a function of its number, so that the same folder comes again wherever the
same espeak-ng is. The program is GPL-3 and is only run; what it makes stays
where it is made.
"""

import pathlib
import random
import shutil
import sys

from absl import app, flags

from experiments.speech.voices import VOICES, WORDS, say

OUT = flags.DEFINE_string("out", "digits", "folder to make")
COUNT = flags.DEFINE_integer("voices", 40, "how many, at most 40")
CLIPS = flags.DEFINE_integer("clips", 30, "of each voice")
MOST = flags.DEFINE_integer("most", 2, "digits in a clip")
PROGRAM = flags.DEFINE_string("program", "espeak-ng", "that speaks")


def main(argv) -> None:
  """Makes what is not there yet."""
  del argv
  if not shutil.which(PROGRAM.value):
    sys.exit(f"{PROGRAM.value} is not installed: apt install espeak-ng")
  voices = VOICES[: COUNT.value]
  top = pathlib.Path(OUT.value)
  for number, voice in enumerate(voices):
    draw = random.Random(number)
    folder = top / voice.replace("+", "_")
    folder.mkdir(parents=True, exist_ok=True)
    for clip in range(CLIPS.value):
      said = " ".join(draw.choices(WORDS, k=draw.randint(1, MOST.value)))
      speed, pitch = draw.randint(140, 210), draw.randint(30, 70)
      path = folder / f"{clip:03d}.wav"
      path.with_suffix(".txt").write_text(said + "\n")
      if not path.exists():
        say(PROGRAM.value, voice, said, path, pace=speed, pitch=pitch)
  print(f"{len(voices)} voices of {CLIPS.value} clips: {top}")


if __name__ == "__main__":
  app.run(main)
