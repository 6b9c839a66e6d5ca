"""More speech beside the recordings of prompts.py, none of a held-out text.

  apt install espeak-ng flite wordnet-base
  python -m experiments.speech.phrases --prompts=prompts

writes below PROMPTS, as tables whose clips are of up to 5 seconds:

  joined.jsonl   the training recordings, several after another, in other orders
  phrases.jsonl  espeak-ng and flite say WordNet's examples of how words are
                 used, and a training text now and then, as over a telephone

and for a search in known words (evaluate --words) texts.txt, the training
texts, and more_texts.txt, these ten times and WordNet's examples. A phrase that
is, or has in it, a text that recorded.py holds out is not said.
The programs are run and not linked; what they make stays where it is made.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags

from aigc_jax.data.documents import is_held_out
from aigc_jax.data.sound import decoding
from experiments.speech import recorded
from experiments.speech.prompts import as_said, write
from experiments.speech.voices import VOICES, say

RATE = 8_000  # samples a second, of a telephone
SECONDS = 5.0  # of a clip at most
LETTERS = 56  # of a clip that is spoken at most: as slow as that, 5 seconds
TIMES = 10  # that a training text is in more_texts.txt
SHARE = 0.3  # of phrases that are training texts
QUOTED = re.compile(r'"([a-zA-Z\' ,.;!?-]+)"')
# Turns of who speaks: flite's voices by name, one of espeak-ng's for None.
TURNS = ("slt", None, None, "slt", None, "kal16")

PROMPTS = flags.DEFINE_string("prompts", "prompts", "written by prompts.py")
WORDNET = flags.DEFINE_string("wordnet", "/usr/share/wordnet", "data.noun ...")
CLIPS = flags.DEFINE_integer("clips", 2400, "that are spoken")
ROUNDS = flags.DEFINE_integer("rounds", 8, "of joining all the recordings")


def examples(folder: pathlib.Path) -> list[str]:
  """The phrases of 2 to 9 words by which WordNet shows how words are used."""
  found = set()
  for path in sorted(folder.glob("data.*")):
    for line in path.read_text().splitlines():
      found |= {as_said(text) for text in QUOTED.findall(line)}
  return sorted(text for text in found if 2 <= len(text.split()) <= 9)


def said_in(text: str, heldout: Sequence[str]) -> set[str]:
  """Those of the others that a text is, or has in it as whole words."""
  return {other for other in heldout if f" {other} " in f" {text} "}


def adds(texts: Sequence[str], heldout: Sequence[str]) -> bool:
  """Whether texts say one of the others by what they are together."""
  apart = set().union(*(said_in(text, heldout) for text in texts))
  return said_in(" ".join(texts), heldout) != apart


def without(texts: Sequence[str], heldout: Sequence[str]) -> list[str]:
  """The texts that have none of the others in them."""
  return [text for text in texts if text and not said_in(text, heldout)]


def lines(
  phrases: Sequence[str], known: Sequence[str], draw: np.random.Generator
) -> Iterator[list[str]]:
  """Without end: phrases that are said after another in one clip."""
  while True:
    line: list[str] = []
    while True:
      some = known if draw.random() < SHARE else phrases
      text = some[draw.integers(len(some))]
      if sum(map(len, [*line, text])) > LETTERS:
        break
      line.append(text)
    if line:
      yield line


def speak(line: Sequence[str], turn: int, path, draw) -> None:
  """Writes the phrases as sound of RATE, in the voice whose turn it is."""
  voice, text = TURNS[turn % len(TURNS)], ", ".join(line)
  if voice:
    pace, pitch = draw.uniform(0.9, 1.15), draw.uniform(0.95, 1.25)
    how = [f"duration_stretch={pace:.2f}", f"f0_shift={pitch:.2f}"]
    settings = [part for one in how for part in ("--setf", one)]
    subprocess.run(
      ["flite", "-voice", voice, *settings, "-t", text, "-o", str(path)],
      check=True,
    )
  else:
    voice = VOICES[draw.integers(len(VOICES))]
    pace, pitch = int(draw.integers(150, 211)), int(draw.integers(30, 71))
    say("espeak-ng", voice, text, path, pace=pace, pitch=pitch)
  path.write_bytes(decoding.wav(of_telephone(path), RATE))


def of_telephone(path: pathlib.Path) -> np.ndarray:
  """(n,) int16 at RATE of a file of any rate."""
  from scipy import signal  # slow to import

  clip, _ = decoding.decoded(path.read_bytes(), "mix")
  down = signal.resample_poly(clip.astype(float), RATE, decoding.RATE)
  return np.clip(np.rint(down), -(1 << 15), (1 << 15) - 1).astype("<i2")


def joined(
  clips: Sequence[tuple[np.ndarray, str]], draw: np.random.Generator
) -> Iterator[tuple[np.ndarray, list[str]]]:
  """All (samples, text) in another order, as many after another as fit."""
  line: list[np.ndarray] = []
  texts: list[str] = []
  for i in draw.permutation(len(clips)):
    clip, text = clips[i]
    rest = np.zeros(int(draw.uniform(0.05, 0.3) * RATE), "<i2")
    if sum(map(len, line)) + len(clip) > SECONDS * RATE and line:
      yield np.concatenate(line[:-1]), texts
      line, texts = [], []
    line += [clip, rest]
    texts.append(text)
  yield np.concatenate(line[:-1]), texts


def checked() -> pathlib.Path:
  """The folder of PROMPTS, where all that is needed is there."""
  out = pathlib.Path(PROMPTS.value)
  for program in ("flite", "espeak-ng"):
    if not shutil.which(program):
      sys.exit(f"{program} is not installed: apt install {program}")
  if not (out / "recorded.jsonl").is_file():
    sys.exit(f"{out}/recorded.jsonl is not there: run prompts.py first")
  if not list(pathlib.Path(WORDNET.value).glob("data.*")):
    sys.exit(f"no data.* in {WORDNET.value}: apt install wordnet-base")
  return out


def rows_of_joined(out: pathlib.Path, rows, heldout: Sequence[str]):
  """(file, text) of the recordings of `rows` after another; makes them."""
  clips = [
    (of_telephone(pathlib.Path(row["audio"])), row["sentence"]) for row in rows
  ]
  clips = [(clip, text) for clip, text in clips if len(clip) <= SECONDS * RATE]
  (out / "joined").mkdir(exist_ok=True)
  for turn in range(ROUNDS.value):
    some = joined(clips, np.random.default_rng(turn))
    for number, (clip, texts) in enumerate(some):
      if not adds(texts, heldout):
        name = f"joined/{turn}-{number:03}.wav"
        (out / name).write_bytes(decoding.wav(clip, RATE))
        yield name, " ".join(texts)


def rows_of_phrases(out: pathlib.Path, phrases, known, heldout: Sequence[str]):
  """(file, text) of what is spoken; makes what is not there yet."""
  (out / "phrases").mkdir(exist_ok=True)
  some = lines(phrases, known, np.random.default_rng(0))
  for turn, line in zip(range(CLIPS.value), some, strict=False):
    if not adds(line, heldout):
      name = f"phrases/{turn:05}.wav"
      if not (out / name).exists():
        speak(line, turn, out / name, np.random.default_rng(turn))
      yield name, " ".join(line)


def main(argv) -> None:
  """Writes the tables and the texts."""
  del argv
  out = checked()
  with (out / "recorded.jsonl").open() as file:
    rows = [json.loads(line) for line in file]
  share = recorded.get_config(str(out)).data.validation
  texts = sorted({row["sentence"] for row in rows})
  heldout = [text for text in texts if is_held_out(text, share)]
  trained = [text for text in texts if text not in heldout]
  phrases = without(examples(pathlib.Path(WORDNET.value)), heldout)
  short = [text for text in trained if len(text) <= LETTERS]
  short = without(short, heldout)
  print(f"{len(phrases)} phrases and {len(short)} training texts are said")
  more = trained * TIMES + phrases
  for name, some in (("texts", trained), ("more_texts", more)):
    (out / f"{name}.txt").write_text("".join(f"{text}\n" for text in some))
  rows = [row for row in rows if row["sentence"] in trained]
  write(out / "joined.jsonl", rows_of_joined(out, rows, heldout))
  spoken = rows_of_phrases(out, phrases, short, heldout)
  write(out / "phrases.jsonl", spoken)


if __name__ == "__main__":
  app.run(main)
