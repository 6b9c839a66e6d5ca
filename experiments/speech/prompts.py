"""Recorded prompts of a telephone exchange, and what is said in each.

  apt install asterisk-core-sounds-en-wav asterisk-core-sounds-en
  python -m experiments.speech.prompts --out=prompts

writes OUT/recorded.jsonl, a row for each recording below --sounds that has a
transcript; with --voices=N also OUT/spoken.jsonl, what is said in them by N
voices of espeak-ng. The recordings (CC-BY-SA-3.0) stay where they are.

What is said is written as it sounds: in lower case, without punctuation, digits
as words. Left out are notes in brackets, and with them beeps and silence.
"""

import gzip
import hashlib
import json
import pathlib
import re
import shutil
import sys

from absl import app, flags

from experiments.speech.voices import VOICES, WORDS, say

PACKAGE = "asterisk-core-sounds-en"
NOTE = re.compile(r"\[[^\]]*\]?|<[^>]*>|\([^)]*\)")
SIGNS = dict(zip("0123456789", WORDS, strict=True)) | {
  "#": "pound",
  "*": "star",
}

SOUNDS = flags.DEFINE_string(
  "sounds", "/usr/share/asterisk/sounds/en_US_f_Allison", "the recordings"
)
TEXTS = flags.DEFINE_string(
  "texts", f"/usr/share/doc/{PACKAGE}/core-sounds-en.txt.gz", "what they say"
)
OUT = flags.DEFINE_string("out", "prompts", "folder to write")
COUNT = flags.DEFINE_integer("voices", 0, "that say the same, at most 40")
PROGRAM = flags.DEFINE_string("program", "espeak-ng", "that speaks")


def as_said(text: str) -> str:
  """A transcript in the words that are heard; empty where it has none."""
  text = NOTE.sub(" ", text).lower().replace("’", "'")
  text = "".join(f" {SIGNS[c]} " if c in SIGNS else c for c in text)
  return " ".join(re.sub(r"[^a-z']", " ", text).split())


def transcripts(lines) -> dict[str, str]:
  """{name of a recording: what is said in it} of lines "NAME: TEXT"."""
  found = {}
  for line in lines:
    name, colon, text = line.partition(":")
    if colon and not line.startswith(";") and as_said(text):
      found[name.strip()] = as_said(text)
  return found


def spoken(texts, voices: int, out: pathlib.Path, program: str):
  """(file, text) of each text by each voice; makes what is not there yet."""
  for voice in VOICES[:voices]:
    folder = out / voice.replace("+", "_")
    folder.mkdir(parents=True, exist_ok=True)
    for text in texts:
      key = hashlib.sha256(f"{voice} {text}".encode()).hexdigest()
      path = folder / f"{key[:16]}.wav"
      # Another pace and pitch each time, the same ones always.
      pace, pitch = 140 + int(key[:4], 16) % 71, 30 + int(key[4:8], 16) % 41
      if not path.exists():
        say(program, voice, text, path, pace=pace, pitch=pitch)
      yield str(path.relative_to(out)), text


def write(path: pathlib.Path, rows) -> None:
  """Writes (file, text) as JSON lines, and tells how many there are."""
  lines = [json.dumps({"audio": a, "sentence": t}) + "\n" for a, t in rows]
  path.write_text("".join(lines))
  print(f"{len(lines)} utterances: {path}")


def main(argv) -> None:
  """Writes the tables."""
  del argv
  top, out = pathlib.Path(SOUNDS.value), pathlib.Path(OUT.value)
  if not top.is_dir() or not pathlib.Path(TEXTS.value).is_file():
    sys.exit(
      f"{top} or {TEXTS.value} is not there: apt install {PACKAGE}-wav "
      f"{PACKAGE}, or say where they are: --sounds=FOLDER --texts=FILE"
    )
  if COUNT.value and not shutil.which(PROGRAM.value):
    sys.exit(f"{PROGRAM.value} is not installed: apt install espeak-ng")
  with gzip.open(TEXTS.value, "rt") as file:
    said = transcripts(file)
  recorded = {}
  for name in sorted(said):
    path = (top / f"{name}.wav").resolve()
    if path.is_file():
      recorded[name] = (str(path), said[name])
  out.mkdir(parents=True, exist_ok=True)
  write(out / "recorded.jsonl", recorded.values())
  if COUNT.value:
    texts = sorted({text for _, text in recorded.values()})
    write(out / "spoken.jsonl", spoken(texts, COUNT.value, out, PROGRAM.value))


if __name__ == "__main__":
  app.run(main)
