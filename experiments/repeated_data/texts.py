"""Texts of given sizes, each the beginning of the next, and one held out.

  python experiments/repeated_data/texts.py DIR

They are of the source of Python's standard library, whose files are put in an
order that their names' hashes give, so that every size has all kinds of them.
"""

import hashlib
import sys
import sysconfig
from pathlib import Path

SIZES = tuple(2**k for k in range(14, 19))  # bytes
HELD_OUT = 2**16


def main(folder: str) -> None:
  library = Path(sysconfig.get_path("stdlib"))
  names = [p for p in library.glob("**/*.py") if "-packages" not in str(p)]

  def place(path):
    name = path.relative_to(library).as_posix()
    return hashlib.sha256(name.encode()).digest()

  text = bytearray()
  for path in sorted(names, key=place):
    text += path.read_bytes()
    if len(text) > HELD_OUT + SIZES[-1]:
      break
  text = text.decode(errors="replace").encode("ascii", "replace")
  out = Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  (out / "heldout.txt").write_bytes(text[:HELD_OUT])
  for size in SIZES:
    (out / f"{size}.txt").write_bytes(text[HELD_OUT : HELD_OUT + size])


if __name__ == "__main__":
  main(*sys.argv[1:])
