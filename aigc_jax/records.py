"""What a JSON value must be: one strict check for every file that is read.

A form says what is expected:
  int, str, bool, dict, list   of just this type (True is no int)
  float                        a finite number, whole or not
  range(0, 10)                 a whole number in it
  "[0-9a-f]{64}"               a text that this pattern matches as a whole
  None                         null
  (a, b)                       one of these forms
  [a]                          a list, each entry of form a
  {"key": a, "other?": b}      an object with these keys; ? may be absent
  {"key": a, str: b}           whose other values are all of form b
Without such an entry, keys that a form does not name are left alone.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from aigc_jax.errors import BadData

COUNT = range(2**53)  # what every reader of JSON keeps exactly
SHA256 = "[0-9a-f]{64}"
WORDS = {
  int: "a whole number",
  float: "a number",
  str: "a text",
  bool: "true or false",
  dict: "an object",
  list: "a list",
  None: "null",
}


def check(value, form, where: str, error: type[Exception] = BadData) -> Any:
  """`value`, which is of this form; else `error`, which names where it is not.

  where: a file, or a place in one, as the message begins.
  """
  if isinstance(form, Mapping):
    if not isinstance(value, dict):
      raise error(f"{where}: expected an object, got {shown(value)}")
    named = {key.removesuffix("?") for key in form if key is not str}
    for key, inner in form.items():
      if key is str:
        for other in value.keys() - named:
          check(value[other], inner, f"{where}: {shown(other)}", error)
        continue
      name = key.removesuffix("?")
      if name in value:
        check(value[name], inner, f"{where}: {name}", error)
      elif name == key:
        raise error(f"{where}: no {name!r} in it")
  elif isinstance(form, list):
    if not isinstance(value, list):
      raise error(f"{where}: expected a list, got {shown(value)}")
    for i, entry in enumerate(value):
      check(entry, form[0], f"{where}[{i}]", error)
  elif not _is(value, form):
    raise error(f"{where}: expected {words(form)}, got {shown(value)}")
  return value


def _is(value, form) -> bool:
  """Whether a value is of a form that is no object and no list."""
  if isinstance(form, tuple):
    return any(fits(value, one) for one in form)
  if isinstance(form, range):
    return type(value) is int and value in form
  if isinstance(form, str):
    return isinstance(value, str) and bool(re.fullmatch(form, value))
  if form is None:
    return value is None
  if form is float:
    return type(value) is int or (type(value) is float and math.isfinite(value))
  return type(value) is form


def fits(value, form) -> bool:
  """Whether `check` would take it."""
  try:
    check(value, form, "")
  except BadData:
    return False
  return True


def words(form) -> str:
  """What a form expects, for a message."""
  if isinstance(form, tuple):
    return " or ".join(words(one) for one in form)
  if isinstance(form, range):
    return f"a whole number from {form[0]} to {form[-1]}"
  if isinstance(form, str):
    return f"a text like {form}"
  if isinstance(form, Mapping):
    return "an object"
  if isinstance(form, list):
    return "a list"
  return WORDS[form]


def shown(value, most: int = 60) -> str:
  """A value in a message, cut where it is long, and on one line."""
  if isinstance(value, dict | list):
    return f"{WORDS[type(value)]} of {len(value)}"
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value) if abs(value) < 1 << 64 else "a number beyond 64 bits"
  text = ascii(value) if isinstance(value, str) else str(value)
  return text if len(text) <= most else f"{text[:most]}..."
