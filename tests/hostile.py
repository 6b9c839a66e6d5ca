"""Damage to files, the same in every run, and what a reader may do with it.

A Format is a file of a good folder and what reads it. The file is damaged again
and again, as bytes (flips, cuts, insertions) and, where it is JSON, as values
(other types, sizes, keys). The reader may give a result or refuse; any other
error is a fault.
"""

import contextlib
import copy
import json
import logging
import os
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from aigc_jax import data
from aigc_jax.data import columns
from aigc_jax.errors import Refusal
from aigc_jax.trainer import manifest

# cases of each format; AIGC_JAX_CASES is for a search of one's own
FEW, MANY = 60, int(os.environ.get("AIGC_JAX_CASES", "10000"))


class Format(NamedTuple):
  """good: writes a whole folder; file: what is damaged in it, or a glob of it;
  read: the reader of the folder. few: cases at every change; none of what is
  slow and like others."""

  good: Callable[[Path], None]
  file: str
  read: Callable[[Path], object]
  few: int = FEW


STRANGE = (
  None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 10**40, 10**400, 0.5, -0.0,
  1e-320, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800", "NaN",
  "1", "../../x", "[/x]", "\x1b[2J", "a" * 5000, [], {}, [[]], [1], ["a"],
  [None], {"a": 1}, {"": []}, [{"kind": 3}],
)  # fmt: skip


def places(value, path=()) -> list[tuple]:
  """Paths of all values below one."""
  found = [path] if path else []
  entries = ()
  if isinstance(value, dict):
    entries = value.items()
  elif isinstance(value, list):
    entries = enumerate(value)
  for key, inner in entries:
    found += places(inner, (*path, key))
  return found


def strange(draw: random.Random):
  """One of STRANGE, that may be changed."""
  return copy.deepcopy(draw.choice(STRANGE))


def another(value, draw: random.Random):
  """The value with something in it exchanged, removed, added or renamed."""
  where = places(value)
  if not where or draw.random() < 0.02:
    return strange(draw)
  path = draw.choice(where)
  inside = value
  for key in path[:-1]:
    inside = inside[key]
  how = draw.random()
  if how < 0.6:
    inside[path[-1]] = strange(draw)
  elif how < 0.75:
    del inside[path[-1]]
  elif how < 0.85 and isinstance(inside, dict):
    inside[draw.choice(("", "step", "kind", "\ud800", "x" * 99))] = draw.choice(
      STRANGE
    )
  elif how < 0.9 and isinstance(inside, list):
    inside.insert(draw.randrange(len(inside) + 1), strange(draw))
  elif isinstance(inside[path[-1]], int | float):
    with contextlib.suppress(OverflowError):
      inside[path[-1]] *= draw.choice((-1, 0, 2, 10**18, 0.5))
  else:
    inside[path[-1]] = [inside[path[-1]]]
  return value


def damaged_bytes(good: bytes, draw: random.Random) -> bytes:
  found = bytearray(good)
  for _ in range(draw.choice((1, 1, 2, 5))):
    at = draw.randrange(len(found) + 1)
    how = draw.randrange(6)
    if how == 0 and at < len(found):
      found[at] ^= 1 << draw.randrange(8)
    elif how == 1:
      found[at : at + draw.randrange(1, 40)] = b""
    elif how == 2:
      found[at:at] = draw.randbytes(draw.randrange(1, 20))
    elif how == 3:
      found[at:at] = found[at : at + draw.randrange(1, 60)]
    elif how == 4:
      del found[at:]
    elif at < len(found):
      found[at] = draw.choice(b'0123456789-{}[]",:.e\n\0\xff ')
  return bytes(found)


def damaged(good: bytes, draw: random.Random) -> bytes:
  """A damaged copy; of JSON, one in three as bytes."""
  if good[:1] not in b"[{" or draw.random() < 1 / 3:
    return damaged_bytes(good, draw)
  try:
    value = json.loads(good)
  except ValueError:  # JSON lines
    lines = good.splitlines()
    i = draw.randrange(len(lines))
    try:
      row = json.loads(lines[i])
    except ValueError:  # no JSON at all
      return damaged_bytes(good, draw)
    lines[i] = json.dumps(another(row, draw)).encode()
    return b"\n".join(lines) + b"\n"
  for _ in range(draw.choice((1, 1, 1, 3))):
    value = another(value, draw)
  sealed = isinstance(value, dict) and "seal" in value
  if sealed and draw.random() < 0.5:  # by somebody who knows the seal
    with contextlib.suppress(ValueError, KeyError):
      if "columns" in value:
        value["fingerprint"] = columns._fingerprint(value)
    with contextlib.suppress(ValueError):
      value["seal"] = data.store.seal(value)
  if isinstance(value, dict) and "leaves" in value and draw.random() < 0.8:
    with contextlib.suppress(ValueError):
      value["sha256"] = manifest._hash(value)
  end = b"\n" if good.endswith(b"\n") else b""  # without it, half a line
  return json.dumps(value).encode() + end


def often(formats: dict[str, Format]) -> list[str]:
  """The names of those that are tried at every change."""
  return [name for name, form in formats.items() if form.few]


def laws(formats: dict[str, Format]) -> tuple[Callable, Callable]:
  """The tests that every format is put to: some cases, and ten thousand."""

  @pytest.mark.parametrize("name", often(formats))
  def few(name, tmp_path, unheard):
    try_all(formats[name], name, tmp_path, formats[name].few)

  @pytest.mark.slow
  @pytest.mark.parametrize("name", formats)
  def many(name, tmp_path, unheard):
    try_all(formats[name], name, tmp_path, MANY)

  return few, many


def try_all(form: Format, name: str, folder: Path, count: int) -> None:
  """Damages the file in so many ways; AssertionError with all that fell."""
  form.good(folder)
  whole = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
  form.read(folder)
  (path,), faults = map(str, folder.glob(form.file)), {}
  states = {other: _state(other) for other in whole}
  for i in range(count):
    for other, content in whole.items():  # what the reader has changed
      if other != path and _state(other) != states[other]:
        Path(other).write_bytes(content)
        states[other] = _state(other)
    with open(path, "wb") as file:
      file.write(damaged(whole[path], random.Random(f"{name} {i}")))
    try:
      form.read(folder)
    except Refusal as refusal:
      assert str(refusal), "a refusal without a word"
    except BaseException as error:
      place = traceback.extract_tb(error.__traceback__)[-1]
      faults.setdefault((type(error).__name__, place.filename, place.lineno),
                        (i, traceback.format_exc()))  # fmt: skip
  shown = "\n".join(f"case {i}:\n{text}" for i, text in faults.values())
  assert not faults, f"{len(faults)} kinds of errors\n{shown}"


def _state(path: str) -> tuple[int, ...]:
  """What is another once a file was written; nothing of one that is gone."""
  try:
    found = os.stat(path)
  except FileNotFoundError:
    return ()
  return found.st_ino, found.st_size, found.st_mtime_ns


@pytest.fixture
def unheard(monkeypatch, capsys):
  """Warnings about broken lines are right, and too many to read.

  Nor is anything made durable: that would be most of the time.
  """
  monkeypatch.setattr(os, "fsync", lambda fd: None)
  monkeypatch.setattr("aigc_jax.trainer.lock.time.sleep", lambda seconds: None)
  monkeypatch.setattr("absl.logging.warning", lambda *args: None)
  logging.disable(logging.CRITICAL)
  yield
  logging.disable(logging.NOTSET)
  capsys.readouterr()
