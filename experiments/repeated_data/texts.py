"""Texts of given sizes, each the beginning of the next, and one held out.

  python experiments/repeated_data/texts.py DIR

They are of the source of Python's standard library, whose files are put in an
order that their names' hashes give, so that every size has all kinds of them.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SIZES = tuple(2**k for k in range(14, 19))  # bytes
HELD_OUT = 2**16


def main(folder: str) -> None:
  library = Path(sysconfig.get_path("stdlib"))
  names = [p for p in library.glob("**/*.py") if "-packages" not in str(p)]

  def place(path):
    name = path.relative_to(library).as_posix()
    return hashlib.sha256(name.encode()).digest()

  files = iter(sorted(names, key=place))
  out = Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  (out / "heldout.txt").write_bytes(_text(files, HELD_OUT))
  text = _text(files, SIZES[-1])
  for size in SIZES:
    (out / f"{size}.txt").write_bytes(text[:size])


def _text(files: Iterator[Path], size: int) -> bytes:
  """So many bytes of the next files, in ASCII; the last of them is cut."""
  text = b""
  while len(text) < size:
    words = next(files).read_bytes().decode(errors="replace")
    text += words.encode("ascii", "replace")
  return text[:size]


if __name__ == "__main__":
  main(*sys.argv[1:])
