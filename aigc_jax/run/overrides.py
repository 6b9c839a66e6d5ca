"""Keys set on the command line: --config.optim.learning_rate=1e-3.

A value is read by the type of what it replaces; where that is None, a list or
a dict, as a Python literal. A kind is set before the other keys and brings its
own with it, so that those can be set by the same line.
"""

import ast
import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from aigc_jax import data, files
from aigc_jax.data.tasks import TASKS, Task
from aigc_jax.data.windows import GIVEN
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.optim import OPTIMIZERS
from aigc_jax.run import compute, script
from aigc_jax.run.evaluation import EVALUATORS
from aigc_jax.run.places import as_meant
from aigc_jax.run.settings import (
  Config,
  as_written,
  config_in,
  plain_of,
  read,
)
from aigc_jax.signature import EMPTY, keys_of

Path = tuple[str | int, ...]
FALSE, TRUE = ("false", "no", "off", "0"), ("true", "yes", "on", "1")

# Sections with a kind: pattern of the path -> what there is by name.
KINDS: dict[str, Mapping[str, Any]] = {
  r"model(\.parts\.[^.]+)?": MODELS,
  r"objective": OBJECTIVES,
  r"optim": OPTIMIZERS,
  r"data": data.KINDS,
  r"data\.task": TASKS,
  r"evaluate\.[^.]+": EVALUATORS,
}
# What sources there are goes by the data that they are of.
OF_SOURCES = re.compile(r"(?:evaluate\.([^.]+)\.)?data\.sources\[\d+\]")


def configured(given: str, settings: Sequence[tuple[str, str | None]]) -> dict:
  """The plain config of what --config names, with the keys of the line set.

  That of a run, DIR/config.json, names the places that it named there.
  """
  config, path = plain_of(script.load(given)), files.expanded(given)
  if given.endswith(".json") and (path.parent / "run.json").is_file():
    config = as_meant(as_written(path.parent, path.name), path.parent, _say)
  return apply(config, settings)


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def repeated(
  workdir: str, settings: Sequence[tuple[str, str | None]] = ()
) -> Config:
  """The config of the run in a work directory, to be run again from here.

  settings: keys set on the command line, as `apply` takes them.
  Raises BadConfig where the folder holds no run.
  """
  config = as_meant(config_in(workdir), workdir)
  return read(apply(config, settings))


def apply(config: dict, given: Sequence[tuple[str, str | None]]) -> dict:
  """The plain `config` with keys set, each "section.key" to a text.

  A text of None is a flag without a value, as of --config.data.shuffle.
  Raises BadConfig, naming the key and the nearest right one.
  """
  config = compute.sectioned(copy.deepcopy(config))
  settings = [(_path(key), key, text) for key, text in given]
  for path, key, text in sorted(settings, key=lambda s: _turn(s[0])):
    _begin(config, path, text)
    _set(config, path, key, text)
  return config


def _begin(config: dict, path: Path, text: str | None) -> None:
  """Puts the entry where evaluate.NAME.kind makes one of a new name.

  It measures at the end, until the line says otherwise. A name like one that is
  there is a slip, and refused as such.
  """
  if len(path) != 3 or (path[0], path[2]) != ("evaluate", "kind"):
    return
  entries = config.get("evaluate")
  if not isinstance(entries, dict) or nearest(str(path[1]), entries):
    return
  if path[1] not in entries:
    keys = (own(_named(path[:2]), text) or {}).items()
    found = {k: copy.deepcopy(x) for k, x in keys if x is not EMPTY}
    entries[path[1]] = {"kind": text, "every_steps": None} | found


def _turn(path: Path) -> int:
  """When a key is set: kinds first, that of data before those of sources."""
  return len(path) if path[-1] == "kind" else sys.maxsize


def _path(key: str) -> Path:
  """ "a.b[1].c" as ("a", "b", 1, "c")."""
  if not re.fullmatch(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*", key):
    raise BadConfig(
      f"--config.{key}: expected --config.section.key=VALUE, or "
      "--config.section.key[0].key=VALUE in a list"
    )
  return tuple(_parts(key))


def _parts(key: str):
  for word in key.split("."):
    name, *numbers = re.split(r"[\[\]]+", word)
    yield name
    yield from (int(n) for n in numbers if n)


def _set(config: dict, path: Path, key: str, text: str | None) -> None:
  """Puts one value where the path leads."""
  section: Any = config
  for i in range(len(path) - 1):
    section = _at(config, section, path, i, text)
  last = path[-1]
  if isinstance(last, int) or not _accepts(config, section, path, last):
    _at(config, section, path, len(path) - 1, text)
  old = section[last] if isinstance(last, int) else section.get(last)
  if isinstance(old, Mapping) and not (text or "").startswith(("{", "dict(")):
    inner = "kind" if "kind" in old else next(iter(old), "KEY")
    raise BadConfig(
      f"--config.{key}={text}: {key} is a section: set a key of it, as in "
      f"--config.{key}.{inner}={text}"
    )
  new = value_of(key, text, old)
  if last == "kind" and isinstance(old, str) and new != old:
    _change_kind(config, section, path[:-1], old, new)
  section[last] = new


def _at(config: dict, section: Any, path: Path, i: int, text) -> Any:
  """section[path[i]], or a BadConfig that says what there is."""
  part, here = path[i], _named(path[:i])
  if isinstance(part, int):
    if not isinstance(section, list | tuple):
      raise BadConfig(f"config key {here} is no list: [{part}] is not in it")
    if part >= len(section):
      there = f"0 to {len(section) - 1}" if section else "nothing"
      raise BadConfig(
        f"config key {here}[{part}] is not there: {here} has {there}"
      )
  elif not isinstance(section, Mapping):
    raise BadConfig(f"config key {here} has no keys: it is {section!r}")
  elif part not in section:
    raise BadConfig(_unknown(config, section, path, i, text))
  return section[part]


def _unknown(config: dict, section: Mapping, path: Path, i: int, text) -> str:
  """The message about a key that is not there, with the nearest that is."""
  prefix = f"{_named(path[:i])}." if i else ""
  found = f"config key {prefix}{path[i]} is unknown"
  new = compute.now_at(f"{prefix}{path[i]}")
  if len(path) == i + 1 and new:
    value = "" if text is None else f"={text}"
    return f"config key {prefix}{path[i]} is {new} today: --config.{new}{value}"
  elsewhere = [p for p in _all_paths(config) if p.split(".")[-1] == path[-1]]
  elsewhere = elsewhere or _by_words(config, str(path[-1]))
  if len(path) == i + 1 and elsewhere:
    value = "" if text is None else f"={text}"
    return f"{found}; did you mean --config.{elsewhere[0]}{value}?"
  words = list(section)
  return (
    f"{found}{nearest(str(path[i]), words)} (there are: {', '.join(words)})"
  )


def _by_words(config: dict, key: str) -> list[str]:
  """The key whose words are among those of `key`: batch_size is data.batch.

  At most one: with the most words of its whole path, then the last word.
  """
  words = key.split("_")
  found = []
  for path in _all_paths(config, leaves=True):
    *sections, last = path.split(".")
    named = last.split("_")
    if set(named) < set(words):
      shared = len(set(words) & {*sections, *named})
      found.append((shared, words.index(named[-1]), path))
  return [max(found, key=lambda each: each[:2])[2]] if found else []


def _all_paths(section: Mapping, prefix: str = "", leaves: bool = False):
  """The dotted names of all keys of the config and, or not, of sections."""
  for key, value in section.items():
    if not (leaves and isinstance(value, Mapping)):
      yield f"{prefix}{key}"
    if isinstance(value, Mapping):
      yield from _all_paths(value, f"{prefix}{key}.", leaves)


def section_of(key: str, config: ConfigDict) -> str | None:
  """Where in the config a key of this name is: "steps", "optim.b1"."""
  paths = _all_paths(plain_of(config))
  paths = [path for path in paths if path.split(".")[-1] == key]
  return paths[0] if paths else None


def _named(path: Path) -> str:
  """The path as it is written on a command line."""
  text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
  return text.removeprefix(".")


def own(section: str, kind: object) -> dict[str, Any] | None:
  """{key: default or EMPTY} of a kind in a section that has kinds."""
  for pattern, table in KINDS.items():
    if re.fullmatch(pattern, section):
      if kind not in table:
        return None  # refused by name, with what there is, where it is read
      made = table[kind]
      if isinstance(made, Task):
        own = keys_of(made.make).items()
        return {k: p.default for k, p in own if k not in GIVEN}
      found = {k: p.default for k, p in keys_of(made).items()}
      if table is MODELS:  # what it takes of compute is there
        found = compute.bare(found)
      return found
  return None


def _own(config: Mapping, path: Path, kind: object) -> dict[str, Any] | None:
  """`own` of where the path leads; of a source by the data that it is of."""
  where = _named(path)
  source = OF_SOURCES.fullmatch(where)
  if source is None:
    return own(where, kind)
  entry = config["evaluate"][source[1]] if source[1] else {}
  of = "images" if entry.get("kind") == "zero_shot" else _kind_of_data(config)
  return data.source_keys(kind, of, EMPTY)


def _kind_of_data(config: Mapping) -> object:
  section = config.get("data")
  return section.get("kind", "text") if isinstance(section, Mapping) else None


def _accepts(config: Mapping, section: Any, path: Path, key: str) -> bool:
  """Whether a key may be set: it is there, or its section's kind has it."""
  if not isinstance(section, Mapping):
    return False
  keys = _own(config, path[:-1], section.get("kind")) or {}
  return key in section or key in keys


def _change_kind(
  config: Mapping, section: dict, path: Path, old: str, new: object
) -> None:
  """Leaves out the keys of the old kind alone, and fills those of the new."""
  was, now = _own(config, path, old), _own(config, path, new)
  if now is None:
    return
  for key in [key for key in section if key != "kind"] if was is None else was:
    if key not in now:
      section.pop(key, None)
  for key, default in now.items():
    if default is not EMPTY:
      section.setdefault(key, default)


def value_of(key: str, text: str | None, old: Any) -> Any:
  """The value that a text means in the place of `old`. Raises BadConfig."""
  if text is None:
    if isinstance(old, bool):
      return True
    raise BadConfig(f"--config.{key} needs a value: --config.{key}={old}")
  if text == "None":
    return None
  for kind, reader in READERS.items():
    if type(old) is kind:
      return reader(key, text)
  if isinstance(old, list | tuple | Mapping):
    return _literal(key, text, f"something like {_example(old)}")
  try:  # the place of None: whatever the text looks like
    return _literal(key, text, "")
  except BadConfig:
    return text


def _bool(key: str, text: str) -> bool:
  if text.lower() not in (*FALSE, *TRUE):
    raise BadConfig(f"--config.{key}={text}: expected true or false")
  return text.lower() in TRUE


def _int(key: str, text: str) -> int:
  try:
    number = float(text.replace("_", "")) if "e" in text.lower() else int(text)
    if number == int(number):
      return int(number)
  except (ValueError, OverflowError):
    pass
  raise BadConfig(f"--config.{key}={text}: expected a whole number")


def _float(key: str, text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise BadConfig(f"--config.{key}={text}: expected a number") from None


READERS: dict[type, Callable] = {
  bool: _bool, int: _int, float: _float, str: lambda key, text: text,
}  # fmt: skip


def _example(old: Any) -> str:
  if isinstance(old, Mapping):
    return "dict(key=1) or None"
  if old and isinstance(old[0], Mapping):
    return "(dict(kind='...'),)"
  return "(1, 2) or ()"


def _literal(key: str, text: str, expected: str) -> Any:
  """A Python literal, or dict(key=literal); nothing is executed."""
  try:
    return _read(ast.parse(text, mode="eval").body)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    raise BadConfig(f"--config.{key}={text}: expected {expected}") from None


def _read(node: ast.expr) -> Any:
  if isinstance(node, ast.Tuple | ast.List):
    return [_read(x) for x in node.elts]
  if isinstance(node, ast.Dict) and None not in node.keys:
    return {
      ast.literal_eval(k): _read(v)
      for k, v in zip(node.keys, node.values, strict=True)
    }
  named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
  if named and node.func.id == "dict" and not node.args:
    return {word.arg or "": _read(word.value) for word in node.keywords}
  return ast.literal_eval(node)
