"""What a run keeps for itself is no place for what others write."""

import os
import re
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadConfig

# Its records, and the folders in which it sets aside or removes what is not
# its own.
KEPT = re.compile(
  r"LOCK|STOP|wandb\.id|(config|run|result|events|metrics)(\.[^/]+)?\.jsonl?"
  r"|checkpoints|tokenizer"
)


def check_out(out: str | Path, flag: str = "--out") -> None:
  """Raises BadConfig where `out` is what some run keeps, or lies in it.

  out: the file or folder that a user asked for, there or not.
  """
  path = Path(os.path.realpath(files.expanded(out)))
  for place in (path, *path.parents):
    if KEPT.fullmatch(place.name) and _is_run(place.parent):
      other = place.parent / f"other{path.suffix}"
      raise BadConfig(
        f"{flag}={out}: {place} is what the run in {place.parent} keeps for "
        f"itself, and goes on from: name another place, such as {other}"
      )


def _is_run(folder: Path) -> bool:
  """Whether a folder is a work directory: an export has no run.json."""
  return all((folder / name).is_file() for name in ("config.json", "run.json"))
