"""What a config says that was written before some keys were there.

Two runs are held against each other as if both had all keys of either: one
that lacks a key did what that key says by default, or what was done before it.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.presets import skeleton
from aigc_jax.run import overrides
from aigc_jax.run.settings import Config, plain_of
from aigc_jax.signature import EMPTY
from aigc_jax.trainer import changes

Path = tuple[str, ...]


def filled(configs: Sequence[Mapping[str, Any]]) -> list[Config]:
  """Copies, each with the keys that another has and that it lacks.

  A key that has no default, or is of another kind than its section, is lacking
  still.
  """
  paths = sorted({path for config in configs for path in _paths(config)})
  found = [copy.deepcopy(dict(config)) for config in configs]
  for config in filter(None, found):  # no config.json says nothing at all
    for path in paths:
      _fill(config, path, _plain())
  return found


@functools.cache
def _plain() -> Config:
  return plain_of(skeleton())


def _paths(section: Mapping, prefix: Path = ()) -> list[Path]:
  """Of all values, kinds first: other keys depend on them."""
  found: list[Path] = []
  for key in sorted(section, key=lambda key: key != "kind"):
    value, path = section[key], (*prefix, key)
    inner = isinstance(value, Mapping) and value
    found += _paths(value, path) if inner else [path]
  return found


def _fill(config: dict, path: Path, plain: Config) -> None:
  """Sets the key of this path to its default, where it is lacking."""
  section, base = config, plain
  for key in path[:-1]:
    if not isinstance(section, dict) or key not in section:
      return
    section = section[key]
    base = base.get(key) if isinstance(base, dict) else None
  if not isinstance(section, dict) or path[-1] in section:
    return
  value = _default(section, path, base if isinstance(base, dict) else {})
  if value is not EMPTY:
    section[path[-1]] = copy.deepcopy(value)


def _default(section: Mapping, path: Path, base: Mapping) -> Any:
  """EMPTY where there is none."""
  key = path[-1]
  kind = section.get("kind", base.get("kind"))
  named = isinstance(kind, str)
  own = overrides.own(".".join(path[:-1]), kind) if named else None
  if own is not None and key != "kind" and key not in own:
    return EMPTY
  before = changes.before("/".join(path), EMPTY)
  if before is not EMPTY:
    return before
  default = own.get(key, EMPTY) if own else EMPTY
  value = base.get(key, EMPTY) if default is EMPTY else default
  # A section that is not there at all is not made of defaults.
  return EMPTY if isinstance(value, Mapping) and value else value
