"""The file of a model's scores, by held-out set and by task.

{"model", "step", "weights", "parameters", "scores": {set: {metric: {"value",
"error", "items", "signature"}}}}, in DIR/evaluate or where --out says.
"""

import contextlib
import dataclasses
import glob
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from aigc_jax import files, records
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.evaluators.loss import RAW
from aigc_jax.records import COUNT
from aigc_jax.run.loaded import Loaded
from aigc_jax.run.origin import hf_folder

# What a file of them holds.
SCORES = {
  "model": str, "step": COUNT, "weights?": str, "parameters?": str,
  "scores": {str: {str: dict}},
}  # fmt: skip


def default_out(loaded: Loaded, weights: str = RAW) -> str:
  """DIR/evaluate/<step>.json of a run, <step>.average.json of its average.

  Nothing for a Hugging Face folder.
  """
  if hf_folder(loaded.name) is not None:
    return ""
  which = "" if weights == RAW else f".{weights}"
  folder = files.expanded(loaded.name)
  return str(folder / "evaluate" / f"{loaded.step}{which}.json")


def save(
  path: Path,
  loaded: Loaded,
  scores: dict[str, dict[str, Estimate]],
  weights: str = RAW,
) -> None:
  """The scores as JSON; those of other sets in the file stay.

  Also those that another process has put there since.
  """
  content = {
    "model": loaded.name, "step": loaded.step, "weights": weights,
    "parameters": loaded.digest,
  }  # fmt: skip
  own = path == Path(default_out(loaded, weights))
  if own:
    files.own_folder(path.parent)
  with contextlib.ExitStack() as held:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      held.enter_context(files.alone_in(path.parent))
    except OSError as error:
      raise StorageFailure(f"--out={path}: {error.strerror}") from None
    kept, fault = {}, ""
    if path.is_file():
      try:
        kept = _kept(path, content, own)
      except BadData as error:
        fault = str(error)
    for name, values in scores.items():
      kept[name] = {k: as_json(e) for k, e in values.items()}
    text = json.dumps(content | {"scores": kept}, indent=1, allow_nan=False)
    with _aside(path, fault) if fault else contextlib.nullcontext():
      files.write_out(path, f"{text}\n")
  print(f"written to {path}")


@contextlib.contextmanager
def _aside(path: Path, fault: str) -> Iterator[None]:
  """Gives another name to a file that holds no scores: it is not ours.

  It has its own again where nothing could be written in its place.
  """
  path = Path(os.path.realpath(path))  # a link is what the user chose
  aside = path.with_name(f"{path.name}.unreadable")
  others = len(list(path.parent.glob(f"{glob.escape(aside.name)}*")))
  if others:  # an earlier one is not lost for this one
    aside = path.with_name(f"{aside.name}.{others}")
  try:
    os.replace(path, aside)
  except OSError as error:
    raise StorageFailure(f"--out={path}: {error.strerror}") from None
  try:
    yield
  except BaseException:
    os.replace(aside, path)
    raise
  print(f"note: {fault}; it is {aside} now", file=sys.stderr)


def _kept(path: Path, content: dict, own: bool) -> dict:
  """The scores in a file of the same model, step and parameters.

  own: whether it lies in the work directory of the model, which may be called
  by another name each time. Raises BadData for a file that holds no scores.
  """
  path = Path(os.path.realpath(path))  # a link is what the user chose
  old = records.check(files.read_json(path), SCORES, str(path))
  # Files of before say of no other weights, and not which parameters.
  old = {"weights": RAW, "parameters": content["parameters"]} | old
  told = ("step", "weights", "parameters")
  same = all(old[key] == content[key] for key in told)
  one = own or _place(old["model"]) == _place(content["model"])
  return old["scores"] if same and one else {}


def _place(model: str) -> str:
  """A work directory or hf:FOLDER, in full."""
  folder = model.removeprefix("hf:")
  # Of a user who is gone, or no path at all.
  with contextlib.suppress(BadConfig, ValueError):
    where = os.path.realpath(files.expanded(folder))
    return model[: len(model) - len(folder)] + where
  return model


def as_json(e: Estimate) -> dict:
  """An estimate without what it lacks; JSON has no infinities."""
  found = dataclasses.asdict(e)
  if not math.isfinite(e.value):
    found["value"] = None
  if math.isnan(e.error):
    del found["error"]
  if not e.signature:
    del found["signature"]
  return found
