"""Translations of programs: gettext catalogues, .po as text and .mo compiled.

Of each message its text and translation (of one with a plural, the singular).
Not taken: what is not translated, marked fuzzy (unsure), or obsolete.
https://www.gnu.org/software/gettext/manual/html_node/PO-Files.html
"""

import ast
import re
import struct
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadData

LARGEST = 64 << 20  # bytes of a catalogue
MAGIC = 0x950412DE
CHARSET = re.compile(r"charset=([\w.-]+)")
KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s*(".*)')


def read_catalogue(path: Path) -> list[tuple[str, str]]:
  """The (message, translation) pairs of a .po or .mo file, in its order.

  Raises BadData for what is no catalogue.
  """
  size = path.stat().st_size
  if size > LARGEST:
    raise BadData(
      f"{path}: {size} bytes, expected a catalogue of at most {LARGEST}"
    )
  data = path.read_bytes()
  pairs = _compiled(data, path) if path.suffix == ".mo" else _text(data, path)
  return [(message, text) for message, text in pairs if message and text]


def _decoded(data: bytes, charset: str, path: Path) -> str:
  try:
    return data.decode(charset)
  except (LookupError, UnicodeError) as e:
    raise BadData(f"{path}: not a catalogue in {charset}: {e}") from None


def _compiled(data: bytes, path: Path) -> list[tuple[str, str]]:
  """Of a .mo file: tables of (length, offset) of messages and translations."""
  try:
    order = "<" if struct.unpack_from("<I", data)[0] == MAGIC else ">"
    magic, _, count, *tables = struct.unpack_from(order + "5I", data)
    if magic != MAGIC or count > len(data) // 16:
      raise struct.error("not a .mo file")
    found = []
    for i in range(count):
      strings = []
      for table in tables:
        length, at = struct.unpack_from(order + "2I", data, table + 8 * i)
        if at + length > len(data):
          raise struct.error("a string lies beyond the end")
        strings.append(data[at : at + length])
      found.append(strings)
  except struct.error as e:
    raise BadData(f"{path}: damaged catalogue: {e}") from None
  header = next((text for message, text in found if not message), b"")
  named = CHARSET.search(header.decode("ascii", "replace"))
  charset = named[1] if named else "utf-8"
  pairs = []
  for message, text in found:
    message = message.rpartition(b"\x04")[2].split(b"\0")[0]
    text = text.split(b"\0")[0]
    pairs.append(
      (_decoded(message, charset, path), _decoded(text, charset, path))
    )
  return pairs


def _text(data: bytes, path: Path) -> list[tuple[str, str]]:
  """Of a .po file, whose entries are parted by empty lines or comments."""
  named = CHARSET.search(data[:4096].decode("ascii", "replace"))
  charset = named[1] if named and named[1] != "CHARSET" else "utf-8"
  text = _decoded(data, charset, path).removeprefix("\ufeff")
  pairs: list[tuple[str, str]] = []
  entry: dict[str, str] = {}
  fuzzy, last = False, ""

  def end():
    text = entry.get("msgstr", entry.get("msgstr[0]"))
    if text is not None and not fuzzy:
      pairs.append((entry.get("msgid", ""), text))
    entry.clear()

  for number, line in enumerate(files.lines_of(text), 1):
    line = line.strip()
    if line.startswith("#") or not line:
      if entry and last.startswith("msgstr"):
        end()
        fuzzy, last = False, ""
      if line.startswith("#,") and "fuzzy" in line:
        fuzzy = True
      continue
    found = KEYWORD.fullmatch(line)
    if found:
      if found[1] in ("msgctxt", "msgid") and last.startswith("msgstr"):
        end()
        fuzzy = False
      last, line = found[1], found[2]
      entry[last] = ""
    if not last:
      raise BadData(f"{path} line {number}: not a .po file: {line[:60]!r}")
    entry[last] += _string(line, path, number)
  end()
  return pairs


def _string(line: str, path: Path, number: int) -> str:
  try:
    found = ast.literal_eval(line) if line.startswith('"') else None
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    found = None
  if not isinstance(found, str):
    raise BadData(
      f"{path} line {number}: expected a string in quotes, got {line[:60]!r}"
    )
  return found
