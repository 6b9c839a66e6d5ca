"""Kinds of one's own: --with=FILE.py adds them to the tables of the package.

The file defines any of MODELS, DERIVED, OBJECTIVES, TASKS, KINDS, EVALUATORS:
a dict of new names to what the tables of that name hold (aigc_jax/models/
README.md has one that works). Who runs a command names the file on its line; a
work directory only says which kinds it needs, and never chooses code.
"""

import hashlib
from collections.abc import Mapping

from aigc_jax import files
from aigc_jax.data import KINDS
from aigc_jax.data.tasks import TASKS
from aigc_jax.errors import BadConfig
from aigc_jax.models import DERIVED, MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.run import script
from aigc_jax.run.evaluation import EVALUATORS
from aigc_jax.trainer import provenance

TABLES: dict[str, dict] = {
  "MODELS": MODELS,
  "DERIVED": DERIVED,
  "OBJECTIVES": OBJECTIVES,
  "TASKS": TASKS,
  "KINDS": KINDS,
  "EVALUATORS": EVALUATORS,
}


BEGIN = "from flax import linen as nn"


def extend(path: str) -> None:
  """Runs a file and adds what it defines; its hash is part of the program's.

  Raises BadConfig for a file that cannot be run, defines no table, or gives a
  new meaning to a name that is there.
  """
  where = f"--with={path}"
  if not path.endswith(".py"):
    raise BadConfig(f"{where}: expected a Python file, PATH.py")
  module = script.module(path, where, BEGIN, "aigc_jax_with")
  found = {name: getattr(module, name, None) for name in TABLES}
  found = {name: own for name, own in found.items() if own}
  if not found:
    raise BadConfig(
      f"{where}: it defines none of {', '.join(TABLES)}: a dict of names of "
      "your own to what they mean"
    )
  for name, own in found.items():
    if not isinstance(own, Mapping):
      raise BadConfig(f"{where}: {name}={own!r}: expected a dict")
    for kind, meaning in own.items():
      if TABLES[name].get(kind, meaning) is not meaning:
        raise BadConfig(
          f"{where}: {name}[{kind!r}] is there already: choose another name"
        )
    TABLES[name].update(own)
  content = files.expanded(path).read_bytes()
  provenance.EXTENSIONS[path] = hashlib.sha256(content).hexdigest()
