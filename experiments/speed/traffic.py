"""What a compiled GPU program moves through memory, operation by operation.

Each kernel reads its operands and writes its results once; of what it only
cuts slices from, those. Caches are not known. So it is no time, but what one
program has more than another shows, and where.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes of a number.
_SIZES = {
  "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2,
  "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
  "f64": 8,
}  # fmt: skip
_ARRAY = re.compile(rf"\b({'|'.join(_SIZES)})\[([\d,]*)\]")
_LINE = re.compile(
  r"\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) "
  r"(?P<kind>[\w\-]+)\((?P<rest>.*)$"
)
# What is only a name for bytes that lie there already.
_FREE = {
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota",
  "after-all",
}  # fmt: skip


class Moved(NamedTuple):
  """One operation, all its calls in a step together."""

  kind: str  # product, attention or other
  shape: str  # of its result
  where: str  # in the model, layers without their numbers
  calls: int
  nbytes: int


def moved(program: str) -> list[Moved]:
  """The operations of a compiled program's text, the largest first."""
  computations, entry = _computations(program)
  calls, sizes = collections.Counter(), collections.Counter()
  for times, line, nbytes in _operations(computations, entry, 1):
    where = re.search(r'op_name="([^"]*)"', line)
    where = re.sub(r"_\d+|\[.*?\]", "", where[1]) if where else ""
    key = (_kind(line), _LINE.match(line)["shape"].split("{")[0], where)
    calls[key] += times
    sizes[key] += times * nbytes
  return [Moved(*key, calls[key], n) for key, n in sizes.most_common()]


def totals(operations: list[Moved]) -> dict[str, int]:
  """{kind: bytes}."""
  found = collections.Counter()
  for one in operations:
    found[one.kind] += one.nbytes
  return dict(found)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
  """({name: its lines}, the name of the one that is run)."""
  found, entry, name = {}, "", ""
  for line in program.splitlines():
    opened = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if opened:
      name = opened[2]
      entry = name if opened[1] else entry
      found[name] = []
    elif name:
      found[name].append(line)
  return found, entry


def _operations(
  computations: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[int, str, int]]:
  """(how often, line, bytes of one call), loops followed."""
  shapes = {}
  for line in computations[name]:
    match = _LINE.match(line)
    if not match:
      continue
    shapes[match["name"]] = match["shape"]
    if match["kind"] == "while":
      body = re.search(r"body=%?([\w.\-]+)", line)[1]
      trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
      trips = int(trips[1]) if trips else 1
      yield from _operations(computations, body, times * trips)
    elif match["kind"] not in _FREE:
      operands = re.findall(r"%([\w.\-]+)", match["rest"].split("), ")[0])
      called = re.search(r"calls=%([\w.\-]+)", line)
      cut = _cut(computations[called[1]]) if called else {}
      read = sum(
        cut.get(i, _nbytes(shapes.get(name, "")))
        for i, name in enumerate(operands)
      )
      yield times, line, read + _nbytes(match["shape"])


def _cut(fused: list[str]) -> dict[int, int]:
  """{operand: bytes read} of those that a fusion only cuts slices from."""
  operand, item = {}, {}  # of each name for (converted) numbers of an operand
  read, whole = collections.Counter(), set()
  for line in fused:
    match = _LINE.match(line)
    if not match:
      continue
    name, shape, kind, rest = match.groups()
    if kind == "parameter":
      operand[name] = int(re.match(r"\d+", rest)[0])
      item[name] = _nbytes(re.sub(r"\[.*?\]", "[]", shape))
      continue
    first, *others = re.findall(r"%([\w.\-]+)", rest.split("), ")[0]) or [""]
    whole.update(operand[x] for x in others if x in operand)
    if first not in operand:
      continue
    if kind in ("slice", "dynamic-slice"):
      numbers = _nbytes(re.sub(r"^\w+", "s8", shape))
      read[operand[first]] += numbers * item[first]
    elif kind in ("bitcast", "convert"):
      operand[name], item[name] = operand[first], item[first]
    else:
      whole.add(operand[first])
  return {i: n for i, n in read.items() if i not in whole}


def _kind(line: str) -> str:
  if '"__cudnn$fmha' in line:
    return "attention"
  is_product = "dot" in _LINE.match(line)["name"] or '"__cublas$' in line
  return "product" if is_product else "other"


def _nbytes(shape: str) -> int:
  """Of an array, or of all arrays of a tuple."""
  return sum(
    _SIZES[kind] * math.prod(int(n) for n in dims.split(",") if n)
    for kind, dims in _ARRAY.findall(shape)
  )
