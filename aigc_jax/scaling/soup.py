"""Averages of the weights of kept checkpoints, as a work directory.

Of the last ones of a run (LAWA, arXiv:2209.14981), of some that are named, or
of several runs of one model (a soup, arXiv:2203.05482). The mean is uniform and
is taken in float64. What comes out has a config, a tokenizer, one checkpoint of
parameters and a run.json that says of what it is made: it is read as a run is,
to evaluate, to write, to export or to begin another run from, but has no state
of an optimizer from which it could go on itself.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from aigc_jax import data, files, run, tree
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.loss import Loss
from aigc_jax.run.alike import differences
from aigc_jax.terminal import counted
from aigc_jax.trainer import history, identity, provenance

# Of a source's checkpoint, as far as it is true of the average too.
SHARED = (
  "data_fingerprint", "heldout_fingerprints", "heldout_entries",
  "tokenizer_fingerprint", "frozen_digest", "packages", "code_sha256",
  "numerics",
)  # fmt: skip


# Of which all sources have to say the same.
DATA = ("data_fingerprint", "heldout_fingerprints", "heldout_entries")


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that goes into an average."""

  workdir: str
  step: int
  manifest: dict

  def __str__(self) -> str:
    return f"{self.workdir}, step {self.step}"


def sources(
  workdirs: Sequence[str], steps: Sequence[int] = (), last: int | None = None
) -> list[Source]:
  """The checkpoints of these runs, oldest first of each run.

  steps: of each run; without them its `last` ones, or all that are kept. Raises
  BadConfig where one is missing, damaged or another run's, where models or
  tokenizers differ, and where there are fewer than two.
  """
  if len({os.path.realpath(files.expanded(w)) for w in workdirs}) < len(
    workdirs
  ):
    raise BadConfig("a work directory is named twice: each counts once")
  found = []
  for workdir in workdirs:
    first, own = (run.usable_config_in(w) for w in (workdirs[0], workdir))
    lines = differences(first["model"], own["model"])
    if lines:
      raise BadConfig(
        f"{workdir} is another model than {workdirs[0]}, of which there is no "
        "average:\n  " + "\n  ".join(lines)
      )
    found += _in(workdir, steps, last)
  if len(found) < 2:
    raise BadConfig(
      f"an average is of two checkpoints or more, and this is one ({found[0]}):"
      " keep more of them (--config.checkpoint.keep=5), or name other runs"
    )
  for key, what in (
    ("tokenizer_fingerprint", "tokenizer"), ("frozen_digest", "frozen part"),
  ):  # fmt: skip
    for one in found[1:]:
      if one.manifest["meta"].get(key) != found[0].manifest["meta"].get(key):
        raise BadConfig(f"{one} has another {what} than {found[0]}")
  return found


def _in(workdir: str, steps: Sequence[int], last: int | None) -> list[Source]:
  """Those of one run."""
  folder = files.expanded(workdir)
  saved = history.checkpoints_in(folder, run.identity_in(folder))
  kept = saved.steps()
  if not kept:
    raise BadConfig(f"{workdir} has no checkpoint: train first")
  if not steps and last is not None and last > len(kept):
    raise BadConfig(
      f"--last={last}: {workdir} has kept {counted(len(kept), 'checkpoint')}, "
      f"of steps {', '.join(map(str, kept))}"
    )
  wanted = sorted(set(steps)) or kept[-(last or 0) :]
  found = []
  for step in wanted:
    saved.check_whole(step)
    found.append(Source(workdir, step, saved.manifest(step)))
  return found


def shared(of: Sequence[Source]) -> dict:
  """Of the last checkpoint's meta, what is true of the average too."""
  metas = [source.manifest["meta"] for source in of]
  return {
    key: metas[-1][key]
    for key in SHARED
    if key in metas[-1]
    and (key not in DATA or all(m.get(key) == metas[-1][key] for m in metas))
  }


def notes(of: Sequence[Source]) -> list[str]:
  """What a reader of the losses has to know of these checkpoints' data."""
  metas = [source.manifest["meta"] for source in of]
  names = {key for m in metas for key in m.get("heldout_fingerprints") or {}}
  lines = []
  for name in sorted(n for n in names if n.startswith("evaluate.")):
    prints = {(m.get("heldout_fingerprints") or {}).get(name) for m in metas}
    if len(prints) > 1:
      lines.append(
        f"{name.removeprefix('evaluate.')} is other held-out data in some of "
        "these runs: their losses are not of one text"
      )
  if len({m.get("data_fingerprint") for m in metas}) > 1:
    lines.append("they were trained on different data, or other batches of it")
  return lines


def mean(of: Sequence[Source]) -> tuple[tree.Tree, run.Loaded]:
  """(the parameters' mean, float32 on the host; the last source, loaded).

  Raises StorageFailure for a checkpoint that is not what was saved, BadConfig
  for a model whose layers keep what belongs to its weights alone.
  """
  total, loaded = None, None
  for source in of:
    loaded = run.load(source.workdir, step=source.step)
    if loaded.fixed is not None and loaded.fixed.stats is not None:
      raise BadConfig(
        f"{source.workdir}: model.kind={loaded.config['model']['kind']!r} has "
        "statistics beside its parameters (running moments, codebooks), and "
        "those of an average are no average of theirs"
      )
    trained, _ = tree.split(loaded.params, loaded.config["frozen"] or {})
    values = jax.tree.map(lambda x: np.asarray(x, np.float64), trained)
    total = values if total is None else jax.tree.map(np.add, total, values)
  dtypes = jax.tree.map(lambda x: x.dtype, trained)
  return jax.tree.map(
    lambda x, d: (x / len(of)).astype(d), total, dtypes
  ), loaded


def write(out: str | Path, of: Sequence[Source]) -> Path:
  """A work directory with the average of these; all of it or nothing.

  Raises BadConfig where `out` is there already, StorageFailure where it cannot
  be written.
  """
  out = files.expanded(out).absolute()
  check_new(out)
  values, loaded = mean(of)
  with (
    files.storage(out.parent, "choose another --out, or make room"),
    files.folder_aside(out) as aside,
  ):
    _fill(aside, of, values, loaded)
    files.sync(aside)
    os.rename(aside, out)
    files.sync(out.parent)
  return out


def check_new(out: str | Path) -> None:
  """Raises BadConfig where there is something already, or no folder for it."""
  run.check_out(out)
  out = files.expanded(out).absolute()
  if os.path.lexists(out):
    raise BadConfig(f"--out={out} is there already: name a new folder")
  if not out.parent.is_dir():
    raise BadConfig(f"--out={out}: there is no folder {out.parent}")


def _fill(
  folder: Path, of: Sequence[Source], values: tree.Tree, loaded: run.Loaded
) -> None:
  """What a work directory is read by; its config comes last."""
  last = of[-1]
  # It keeps no moving average, and goes on from no run.
  config = loaded.config | {
    "optim": loaded.config["optim"] | {"average": None},
    "branch_from": None,
    "branch_step": None,
  }
  ours = identity.new().going_on(0, folder)
  ours = dataclasses.replace(ours, place=None)
  meta = shared(of)
  meta |= {"model": config["model"], "config_sha256": run.fingerprint(config)}
  about = provenance.describe(
    argv=sys.argv,
    mesh=dict(loaded.mesh.shape),
    run=ours.as_json(),
    parameters=tree.count(values),
    seed=config["seed"],
    soup=[_told(one) for one in of],
    **{key: x for key, x in meta.items() if key not in ("packages", "model")},
  )
  if loaded.tokenizer is not None:
    data.save(loaded.tokenizer, folder / "tokenizer")
  files.write_json(folder / "run.json", about)
  saved = history.checkpoints_in(folder, ours, retries=1)
  placed = jax.device_put(values)
  saved.commit(last.step, {"params": placed}, meta)
  saved.close()
  files.write_json(folder / "config.json", config)


def _told(source: Source) -> dict:
  """What run.json says of a checkpoint that went in."""
  return {
    "workdir": os.path.realpath(files.expanded(source.workdir)),
    "run": source.manifest.get("run"),
    "step": source.step,
    "digest": source.manifest["digest"],
  }


def losses(
  workdir: str | Path,
  step: int | None = None,
  say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
  """{held-out set: loss} of a run or an average, of the sets it has by it.

  None of those whose store is not there any more, of which `say` is told why.
  Raises BadData, BadConfig for data that cannot be read.
  """
  loaded = run.load(str(workdir), step=step, remat="none")
  config, found = loaded.config, {}
  score = run.scorer(loaded.model, run.objective_of(config))
  with jax.set_mesh(loaded.mesh):
    for name, held in _held_out(loaded, say):
      measured = Loss(score, held, loaded.mesh, name=name)
      values = measured.measure(loaded.params, loaded.fixed)
      found[name] = float(values["loss"])
  return found


def _held_out(
  loaded: run.Loaded, say: Callable[[str], None]
) -> Iterator[tuple[str, object]]:
  prints = run.heldout_prints(loaded.name, loaded.step)
  for name, entry in run.evaluations(loaded.config).items():
    if entry["kind"] != "loss":
      continue
    given = dict(batches=entry["batches"], tokenizer=loaded.tokenizer)
    held = run.find_eval(
      loaded.config, **run.known_by(prints, name), **given | entry["data"]
    )
    if held is None:
      where = f"--workdir={shlex.quote(loaded.name)}"
      way = f"run python -m aigc_jax.evaluate {where} --prepare"
      say(f"not measured: {run.lost(name, loaded.config, way)}")
    else:
      yield name, held


def as_text(rows: Sequence[tuple[str, dict[str, float]]], out: Path) -> str:
  """A table of losses before and after: (name, losses) each, ours the last."""
  names = list(dict.fromkeys(name for _, found in rows for name in found))
  if not names:
    return (
      "not measured: no held-out set of these runs is prepared here. python -m "
      f"aigc_jax.evaluate --workdir={shlex.quote(str(out))} --prepare makes it"
    )
  lines = [("", *(f"{name}/loss" for name in names))]
  for title, found in rows:
    lines.append(
      (title, *(f"{found[n]:.5f}" if n in found else "-" for n in names))
    )
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
