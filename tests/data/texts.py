"""Small texts and the data settings that name their stores."""

import random

WORDS = (
  "the a def return batch tokens over under naïve 数据 straße 🙂 Ωmega x1 x2 "
  "one two three ### == () ['k'] \tif:"
).split(" ")


def prose(seed: int, lines: int) -> str:
  """Lines of words with indentation, empty lines and other alphabets."""
  draw = random.Random(seed)
  out = []
  for _ in range(lines):
    words = draw.choices(WORDS, k=draw.randrange(9))
    out.append("  " * draw.randrange(4) + " ".join(words))
  return "\n".join(out) + "\n"


def text_source(path, **changes) -> dict:
  """A source of text with all its keys."""
  source = dict(
    kind="text", path=str(path), split="train", field="text", weight=1.0
  )
  return source | changes


def settings(path, root, **changes) -> dict:
  """The data settings that name stores, for one path."""
  found = dict(
    sources=[text_source(path)],
    tokenizer="bytes",
    tokenizer_vocab=300,
    validation=0.1,
    root=str(root),
    say=lambda text: None,
  )
  return found | changes


SHAPE = dict(task=dict(kind="next_token"), batch=6, length=16, segments=False)
ORDER = dict(shuffle=True, skip_steps=(), seed=3)
