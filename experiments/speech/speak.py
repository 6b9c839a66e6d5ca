"""Spoken digits, made by espeak-ng: a folder for each voice.

  apt install espeak-ng
  python experiments/speech/speak.py --out=digits

Each clip is an utterance of one to --most digits in one of several voices,
speeds and pitches; NAME.wav with NAME.txt beside it. Which digits a voice says
is a function of its number, so that the same folder comes again wherever the
same espeak-ng is. The program is GPL-3 and is only run; what it makes stays
where it is made.
"""

import pathlib
import random
import shutil
import subprocess
import sys

from absl import app, flags

WORDS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
  "nine",
)  # fmt: skip
# English as it is spoken in places, by men and women of espeak-ng.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4", "f5")

OUT = flags.DEFINE_string("out", "digits", "folder to make")
VOICES = flags.DEFINE_integer("voices", 40, "how many, at most 40")
CLIPS = flags.DEFINE_integer("clips", 30, "of each voice")
MOST = flags.DEFINE_integer("most", 2, "digits in a clip")
PROGRAM = flags.DEFINE_string("program", "espeak-ng", "that speaks")


def main(argv) -> None:
  """Makes what is not there yet."""
  del argv
  if not shutil.which(PROGRAM.value):
    sys.exit(f"{PROGRAM.value} is not installed: apt install espeak-ng")
  voices = [f"{a}+{v}" for a in ACCENTS for v in VARIANTS][: VOICES.value]
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
        subprocess.run(
          [PROGRAM.value, "-v", voice, "-s", str(speed), "-p", str(pitch),
           "-w", str(path), said],
          check=True,
        )  # fmt: skip
  print(f"{len(voices)} voices of {CLIPS.value} clips: {top}")


if __name__ == "__main__":
  app.run(main)
