"""What the scripts that look at results share: a line, tables, a picture."""

import argparse
import sys
from collections.abc import Callable, Sequence

from aigc_jax.errors import Refusal
from aigc_jax.scaling import pictures
from aigc_jax.scaling.runs import Record, open_runs


def main(
  doc: str,
  tell: Callable[[Sequence[Record], argparse.Namespace], Callable],
  **flags: str,
) -> int:
  """Prints what `tell` says of RESULTS; the exit status.

  tell(runs, given) returns what draws the picture, which is saved where --out
  names a file. flags: others of the line, and what they are by default.
  """
  parser = argparse.ArgumentParser(description=doc.splitlines()[0])
  parser.add_argument("results")
  for name, default in flags.items():
    parser.add_argument(f"--{name}", default=default)
  parser.add_argument("--out", default="")
  given = parser.parse_args()
  try:
    picture = tell(open_runs([given.results]), given)
    if given.out:
      print(pictures.save(picture(), given.out))
  except Refusal as refusal:
    print(refusal, file=sys.stderr)
    return refusal.code
  return 0
