"""The words and voices of speech that is made here, by espeak-ng.

The program is GPL-3 and is only run; what it makes stays where it is made.
"""

import pathlib
import subprocess

WORDS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
  "nine",
)  # fmt: skip
# English as it is spoken in places, by men and women of espeak-ng.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4", "f5")
VOICES = tuple(f"{a}+{v}" for a in ACCENTS for v in VARIANTS)


def say(
  program: str, voice: str, text: str, path: pathlib.Path, *, pace: int,
  pitch: int,
) -> None:  # fmt: skip
  """Writes a text as sound, in words a minute and a pitch from 0 to 99."""
  subprocess.run(
    [program, "-v", voice, "-s", str(pace), "-p", str(pitch), "-w", str(path),
     text],
    check=True,
  )  # fmt: skip
