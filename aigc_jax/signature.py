"""Keyword arguments from a config, checked by name and by type.

What a section configures says by its signature which keys there are, of what
type each is, and which have a default.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aigc_jax.errors import BadConfig, BadKey, MissingKeys, choose, nearest

TINY, HUGE = 2.0**-126, (2 - 2**-23) * 2.0**127  # of normal float32

EMPTY = inspect.Parameter.empty

# How a message names a type.
WORDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "text",
  type(None): "None",
}


KINDED = ("model", "objective")  # their kind is read before what it calls


@functools.lru_cache(1024)
def keys_of(f: Callable) -> Mapping[str, inspect.Parameter]:
  """The keyword-only parameters of f by name: the keys of its section.

  Remembered, for a config asks the same functions many times.
  """
  parameters = inspect.signature(f).parameters.values()
  return types.MappingProxyType(
    {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  )


def call(f: Callable, section: str, values: Mapping, /, **more):
  """f(**values, **more); keys and types that do not fit are BadConfig."""
  check_call(f, section, values, *more)
  return f(**values, **more)


def check_call(f: Callable, section: str, values: Mapping, /, *more: str):
  """Raises BadConfig unless f takes `values` and what `more` names."""
  known = {k: p for k, p in keys_of(f).items() if k not in more}
  given = set(values)
  needed = [k for k, p in known.items() if p.default is EMPTY or k in given]
  expect(section, values, needed, among=known, called=f)
  check_types(section, values, {k: p.annotation for k, p in known.items()})


def expect(
  where: str,
  given: Iterable[str],
  wanted: Iterable[str],
  *,
  among: Iterable[str] = (),
  called: Callable = lambda: None,
) -> None:
  """Raises BadConfig unless `given` are just the keys `wanted`.

  where: the section, "config" for the config itself. among: all keys that
  there are, where some of them may be absent. called: what takes them by name,
  and so of what type each is.
  """
  given, wanted = list(given), list(wanted)
  prefix = "" if where == "config" else f"{where}."
  known = list(among) or wanted
  for key in given:
    if key not in known:
      words = sorted({*known, *["kind"] * (where in KINDED)})
      raise BadKey(
        f"config key {prefix}{key} is unknown{nearest(key, words)} "
        f"(there are: {', '.join(words)})",
        f"{prefix}{key}",
      )
  lacking = [key for key in wanted if key not in given]
  if lacking:
    are = "is" if len(lacking) == 1 else "are"
    types = {k: p.annotation for k, p in keys_of(called).items()}
    expected = [in_words(types[key]) for key in lacking if key in types]
    raise MissingKeys(
      f"config key{'s' * (len(lacking) > 1)} "
      f"{', '.join(prefix + key for key in lacking)} {are} missing"
      + (f": expected {', '.join(expected)}" if expected else ""),
      where,
    )


def kind_of(section: str, values: Mapping, table: Mapping) -> tuple:
  """(table[kind], the other keys) of a section that has a kind."""
  if "kind" not in values:
    raise MissingKeys(
      f"config key {section}.kind is missing (there are: "
      f"{', '.join(sorted(table))})",
      section,
    )
  rest = {k: v for k, v in values.items() if k != "kind"}
  name = f"{section}.kind"
  try:
    return choose(values["kind"], table, name), rest
  except BadConfig as unknown:
    raise BadKey(str(unknown), name) from None


def check_types(section: str, values: Mapping, wanted: Mapping) -> None:
  """Raises BadConfig, which names all values that are not of their types."""
  prefix, found = f"{section}." if section else "", []
  for key, value in values.items():
    try:
      if key in wanted:
        check_type(f"{prefix}{key}", value, wanted[key])
    except BadKey as error:
      found.append(error)
  if found:
    raise BadKey("; ".join(map(str, found)), found[0].key)


def check_type(name: str, value: object, wanted: Any) -> None:
  """Raises BadConfig unless a plain value is of an annotated type.

  Types that no config can hold are not looked at: code passes those.
  """
  if not fits(value, wanted):
    raise BadKey(f"{name}={value!r}: expected {in_words(wanted)}", name)
  if isinstance(value, float) and not _in_float32(value):
    raise BadKey(
      f"{name}={value!r}: expected a number that float32 holds, as 0 or from "
      "1.2e-38 to 3.4e38: it would become another",
      name,
    )


def _in_float32(value: float) -> bool:
  """Whether a finite number neither overflows nor vanishes on a device."""
  return value == 0 or TINY <= abs(value) <= HUGE


def fits(value: object, wanted: Any) -> bool:
  """Whether a plain value may stand for an annotated type."""
  origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, one) for one in inner)
  kind = origin or wanted
  if kind is None or kind is type(None):
    return value is None
  if kind is bool or kind is str:
    return isinstance(value, kind)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if kind is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
  if kind in (list, tuple, Sequence):
    return isinstance(value, list | tuple) and all(
      fits(x, inner[0]) for x in value if inner
    )
  if kind in (dict, Mapping):
    return isinstance(value, Mapping)
  return True


def in_words(wanted: Any) -> str:
  """ "a whole number or None" for int | None."""
  origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(in_words(one) for one in inner)
  kind = origin or wanted
  if kind is None:
    return WORDS[type(None)]
  if kind in (list, tuple, Sequence):
    of = f" of which each is {in_words(inner[0])}" if inner else ""
    return f"a list such as (a, b){of}"
  if kind in (dict, Mapping):
    return "a dict such as dict(kind='...')"
  return WORDS.get(kind, str(kind))
