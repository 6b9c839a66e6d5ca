"""One piece of a config's data, for a command that is shown to be typed."""

from typing import NamedTuple

LOOKED_AT = 1000  # of the data at most, so that it costs a moment
WORDS = 12  # of a text that goes on


class Example(NamedTuple):
  """text: what a model may be given to read; audio: a file that it may hear.

  Each "" where the data has none.
  """

  text: str = ""
  audio: str = ""
