"""A file of the user's own: run, asked for what it makes, faults told by line.

A config file PATH.py defines `get_config()` or `get_config(preset)`, and the
preset stands after a colon: PATH.py:PRESET. The file of a sweep defines
`get_sweep()` in the same way.
"""

import ast
import dataclasses
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aigc_jax import files
from aigc_jax.errors import BadConfig, Refusal, nearest
from aigc_jax.signature import WORDS

# What a ConfigDict says of a value that is of another type than its key's.
WRONG_TYPE = re.compile(
  r"Could not override field '(.+?)' \(reference\)\. (.*) is of original type "
  r"<class '([\w.]+)'> and cannot be casted to type <class '([\w.]+)'>",
  re.DOTALL,
)
EXPECTED = {kind.__name__: words for kind, words in WORDS.items()} | {
  "tuple": "a tuple",
  "list": "a list",
  "ml_collections.config_dict.config_dict.ConfigDict": "keys and their values",
}
NAME = "aigc_jax_config"  # of the module that a config file becomes


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a file is for: its flag, its function, and what that gives."""

  flag: str
  gives: str  # "config"
  begin: str  # how a file of one's own begins
  returns: str  # what the function may return, in an example

  @property
  def function(self) -> str:
    return f"get_{self.gives}"


CONFIG = Kind(
  "--config", "config", "from aigc_jax.presets import skeleton",
  "that returns a config, from aigc_jax.presets.skeleton() for instance",
)  # fmt: skip
SWEEP = Kind(
  "--sweep", "sweep", "from aigc_jax.scaling.space import Sweep",
  "that returns a Sweep(CONFIG, POINTS) of aigc_jax.scaling.space",
)  # fmt: skip


def parted(given: str) -> tuple[str, str, str]:
  """(PATH, ":", PRESET) of "PATH:PRESET"; (PATH, "", "") without a preset.

  A folder may have a colon in its name, such as that of a time of day.
  """
  ends = [m.end() for m in re.finditer(r"\.py(?=:|\Z)", given)]
  there = [n for n in ends if files.expanded(given[:n]).is_file()]
  if given.endswith(".json") and not there:
    return given, "", ""
  for n in there + ends:
    return given[:n], given[n : n + 1], given[n + 1 :]
  return given.partition(":")


def load(given: str) -> ConfigDict | Mapping:
  """The config of "PATH.py", "PATH.py:PRESET" or "DIR/config.json".

  A *.py is executed, a *.json is only data; nothing else is opened, whatever
  is in it. Raises BadConfig.
  """
  path, colon, _ = parted(given)
  where = f"--config={path}"
  if path.endswith(".json") and not colon:
    return files.read_json(files.expanded(path), error=BadConfig)
  if not path.endswith(".py"):
    raise BadConfig(
      f"--config={given}: expected a config file PATH.py, PATH.py:PRESET, or "
      "the config.json of a work directory; nothing else is read as a config"
    )
  config = _made(given, CONFIG)
  if not isinstance(config, ConfigDict | Mapping):
    returned = "nothing" if config is None else repr(config)
    raise BadConfig(
      f"{where}: its get_config() returns {returned} instead of a config: end "
      "it with `return config`"
    )
  return config


def load_sweep(given: str) -> Any:
  """What the file of a sweep, "PATH.py" or "PATH.py:PRESET", returns.

  Raises BadConfig.
  """
  if not parted(given)[0].endswith(".py"):
    raise BadConfig(
      f"--sweep={given}: expected a sweep file, PATH.py or PATH.py:PRESET"
    )
  return _made(given, SWEEP)


def _made(given: str, kind: Kind) -> Any:
  """What the function of "PATH.py:PRESET" returns."""
  path, colon, preset = parted(given)
  where, name = f"{kind.flag}={path}", kind.function
  found = module(path, where, kind.begin)
  make = getattr(found, name, None)
  if not callable(make):
    raise BadConfig(
      f"{where}: the file defines no {name}(): def {name}(): ... {kind.returns}"
      f"{nearest(name, [n for n in vars(found) if n[0] != '_'])}"
    )
  takes = inspect.signature(make).parameters.values()
  if colon and not takes:
    raise BadConfig(
      f"{where}:{preset}: its {name}() takes no preset: leave ':{preset}' out"
    )
  if not colon and any(p.default is p.empty for p in takes):
    raise BadConfig(
      f"{where}: its {name}() needs a preset after a colon, as in "
      f"{where}:PRESET"
    )
  try:
    return make(preset) if colon else make()
  except (Exception, SystemExit) as error:
    raise _refusal(error, path, where) from error


def module(
  path: str, where: str, begin: str, name: str = NAME
) -> types.ModuleType:
  """The file run as a module called `name`, with what it imports.

  where: how messages name it. begin: the first line of one that works. Raises
  BadConfig.
  """
  file = files.expanded(path)
  if not file.is_file():
    raise BadConfig(
      f"{where}: there is no such file{_nearest_beside(file)} "
      f"({_in_clone(path)}; an own one begins with: {begin})"
    )
  _let_import(file)
  spec = importlib.util.spec_from_file_location(name, file.absolute())
  if spec is None or spec.loader is None:
    raise BadConfig(f"{where}: expected a Python file, PATH.py")
  found = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(found)
  except (Exception, SystemExit) as error:
    raise _refusal(error, path, where) from error
  return found


def _nearest_beside(file: Path) -> str:
  """ "; did you mean 'x.py'?" where a file nearby is called nearly so."""
  return nearest(file.name, [path.name for path in file.parent.glob("*.py")])


def _in_clone(path: str) -> str:
  """Where a config of ours lies that is named as from within the clone."""
  there = Path(__file__).parents[2] / path
  if path.endswith(".py") and there.is_file():
    return f"there is {there}"
  return "a clone has some in its configs/ and experiments/"


def place_of(given: str, key: str) -> str:
  """ "FILE, line N: TEXT" where a config file names "section.key"; or FILE.

  Text alone is looked at: of a key that a loop or another file sets, the file
  is told.
  """
  path, name = parted(given)[0], key.rpartition(".")[2]
  text = files.expanded(path).read_text(errors="replace")
  lines = files.lines_of(text)
  if path.endswith(".json"):
    found = [i for i, x in enumerate(lines, 1) if f'"{name}"' in x]
  else:
    found = [
      node.lineno
      for node in ast.walk(ast.parse(text))
      if name in (getattr(node, a, None) for a in ("attr", "arg", "value"))
      and hasattr(node, "lineno")
    ]
  if not found:
    return path
  return f"{path}, line {min(found)}: {lines[min(found) - 1].strip()[:200]}"


def _let_import(file: Path) -> None:
  """A config may import its package, and the files that lie beside it.

  Those come last: none may stand before a library of the same name.
  """
  package = file.absolute().parent
  while (package.parent / "__init__.py").is_file():
    package = package.parent
  if (package / "__init__.py").is_file():
    sys.path.insert(0, str(package.parent))
  sys.path.append(str(file.absolute().parent))


def _refusal(error: BaseException, path: str, where: str) -> BadConfig:
  """What went wrong in a config file, in a line, with its place in the file."""
  if isinstance(error, Refusal):
    return BadConfig(f"{where}: {error}")
  if isinstance(error, SyntaxError):
    place = f"line {error.lineno}" if error.filename else "somewhere"
    line = f": {error.text.strip()}" if error.text else ""
    return BadConfig(f"{where}, {place}: {error.msg}{line}")
  text = _plain(error)
  if isinstance(error, ValueError) and text.startswith("preset "):
    return BadConfig(text)  # of ours, who say which preset there is
  file = str(files.expanded(path).absolute())
  frames = [
    f for f in traceback.extract_tb(error.__traceback__) if f.filename == file
  ]
  place = f", line {frames[-1].lineno}" if frames else ""
  line = f" ({frames[-1].line})" if frames and frames[-1].line else ""
  if isinstance(error, SystemExit):  # 0 would look like work that is done
    text += ": it ends the command while it is only read; leave that out"
  what = f"{type(error).__name__}: "
  if isinstance(error, ImportError):
    what, text = "imports what is not here: ", text + _beside(error, file)
  elif WRONG_TYPE.search(str(error)) or text.startswith("there is no "):
    what = ""
  return BadConfig(f"{where}{place}: {what}{text}{line}")


def _plain(error: BaseException) -> str:
  """An error's text in a line; of a config, whose own is a repr, as we say."""
  text = str(error)
  if isinstance(error, AttributeError) and isinstance(error.obj, ConfigDict):
    there = sorted(error.obj)
    return (
      f"there is no {error.name!r}{nearest(error.name, there)} "
      f"(there are: {', '.join(there)})"
    )
  if slip := WRONG_TYPE.search(text):
    key, value, given, wanted = slip.groups()
    expected = EXPECTED.get(wanted, wanted)
    value = repr(value) if given == "str" else value
    return f"{key} is {value}, expected {expected}"
  return " ".join(text.split())


def _beside(error: ImportError, file: str) -> str:
  """ "; did you mean 'x'?" where what a config imports is called nearly so.

  A file beside it; or a module of the package that it is imported from.
  """
  if name := re.match(r"cannot import name '(\w+)' from '", str(error)):
    package = sys.modules.get(error.name or "")
    paths = getattr(package, "__path__", ())
    return nearest(name[1], [m.name for m in pkgutil.iter_modules(paths)])
  names = [path.stem for path in Path(file).parent.glob("*.py")]
  return nearest(error.name or "", names)
