"""The flags of known words, in which alone a model writes down what it hears.

  --words=FILE --beams=32 [--words_weight=0.5] [--words_reward=1]

See words.py for what they decide.
"""

import math

from absl import flags

from aigc_jax.errors import BadConfig
from aigc_jax.sampling.words import REWARD, WEIGHT, Known, known

FLAGS = ("words", "words_weight", "words_reward")


def define_flags() -> None:
  """The flags of known words, by which sound is written down."""
  flags.DEFINE_string(
    "words", "", "of a ctc: file of texts, in whose words alone it writes"
  )
  flags.DEFINE_float(
    "words_weight", WEIGHT, "of how likely those texts make a text"
  )
  flags.DEFINE_float("words_reward", REWARD, "of each word, in nats")


def given(values: flags.FlagValues) -> Known | None:
  """The texts that --words names, None without. Raises BadData."""
  if not values.words:
    return None
  return known(values.words, values.words_weight, values.words_reward)


def check_flags(values: flags.FlagValues) -> None:
  """BadConfig for flags of known words that do not go together."""
  if not values.words:
    for name in ("words_weight", "words_reward"):
      if values[name].present:
        raise BadConfig(f"--{name} is of known words: add --words=FILE")
    return
  if not values.beams:
    raise BadConfig("--words searches for a text: add --beams=32")
  if values["length_penalty"].present:
    raise BadConfig(
      "--length_penalty is of a model that writes, --words is not: there is "
      "--words_reward"
    )
  for name, least in (("words_weight", 0.0), ("words_reward", -math.inf)):
    if not (least <= values[name].value < math.inf):
      raise BadConfig(
        f"--{name}={values[name].value}: expected a finite number"
        + ", at least 0" * (least == 0)
      )
