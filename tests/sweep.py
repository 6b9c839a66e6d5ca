"""Long parametrisations: a few of each by default, all of them with slow ones.

@pytest.mark.parametrize("name", sweep(NAMES, "one", "another"))
"""

from collections.abc import Iterable

import pytest


def sweep(values: Iterable, *default) -> list:
  """The values as parameters; those that `default` does not name are slow.

  A tuple is the arguments of several names. Whatever is named must be among
  the values: what is renamed does not leave the default run unnoticed.
  """
  values = list(values)
  missing = [x for x in default if x not in values]
  assert default and not missing, f"{missing} is not among {values}"
  return [x if x in default else slow(x) for x in values]


def slow(value):
  arguments = value if isinstance(value, tuple) else (value,)
  return pytest.param(*arguments, marks=pytest.mark.slow)
