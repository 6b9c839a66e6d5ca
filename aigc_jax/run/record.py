"""What a run writes of itself when it starts or goes on."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import logging

from aigc_jax import tree
from aigc_jax.run.build import Run
from aigc_jax.run.load import frozen_digest
from aigc_jax.run.origin import SPECIAL
from aigc_jax.run.places import JUDGES
from aigc_jax.run.settings import (
  Config,
  as_written,
  fingerprint,
  provenance_in,
  written_fingerprint,
)
from aigc_jax.trainer import history, provenance
from aigc_jax.trainer.changes import Change
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.journal import Journal

TEXTS = "texts"  # of the name of a held-out set: what scores read beside it


def fingerprints(stream, evaluators: dict) -> dict[str, str]:
  """Of the training data and of every held-out set, by their config keys.

  And of the networks that judge what is drawn or said: a curve is by one; of
  the texts that scores read beside what a batch has of them; and of special
  tokens, by which texts are hidden, joined and ended.
  """
  found = {"data": stream.fingerprint}
  tokenizer = getattr(stream, "tokenizer", None)
  if special := getattr(tokenizer, "special_fingerprint", ""):
    found[SPECIAL] = special
  for name, (_, evaluator) in evaluators.items():
    if hasattr(evaluator, "fingerprint"):
      found[f"evaluate.{name}"] = evaluator.fingerprint
    if texts := getattr(evaluator, "texts_fingerprint", ""):
      found[f"evaluate.{name}.{TEXTS}"] = texts
    for judge, print_ in getattr(evaluator, "judges", {}).items():
      found[f"evaluate.{name}.{judge}"] = print_
  return found


def entries(config: Config) -> dict[str, str]:
  """Hashes of how each held-out set is configured, texts, and each network."""
  found = {}
  for name, entry in config["evaluate"].items():
    judges = [judge for judge in JUDGES if judge in entry]
    ends = [f".{judge}{more}" for judge in judges for more in ("", ".config")]
    ends += [f".{TEXTS}"] * (entry.get("kind") == "loss")
    for end in ("", *ends):
      found[f"evaluate.{name}{end}"] = fingerprint(entry)
  return found


def note_identity(
  workdir: Path, known: Identity, ours: Identity, journal: Journal
) -> None:
  """Puts what the run is from now on into its run.json, before it saves."""
  there = (workdir / "run.json").is_file()
  about = provenance_in(workdir) if there else {}
  journal.write("run.json", about | {"run": ours.as_json()})
  if known.id:
    return
  journal.event("identity", ours.since, run=ours.id)
  logging.warning(
    "this run is from before runs had an identity: it is %s from now on",
    ours.id,
  )


def record(
  r: Run,
  workdir: Path,
  *,
  stream,
  prints: Mapping[str, str],
  start: int,
  changed: list[Change],
  ours: Identity,
  manifest: Mapping | None,
  frozen,
  origins: Mapping[str, int],
  journal: Journal,
) -> tuple[dict, Callable[[str], None]]:
  """config.json, run.json and the restart.

  Returns the checkpoints' meta, and what notes the hash of the compiled step in
  it and beside the rest. run.json is of the first start, run.<step>.json of a
  later one. What is not as it was in `manifest` is journalled.
  """
  config = r.config
  meta = {
    "config_sha256": fingerprint(config),
    "data_fingerprint": prints["data"],
    "heldout_fingerprints": {k: x for k, x in prints.items() if k != "data"},
    "heldout_entries": entries(config),
    "each_step": r.each.as_meta(),
  }
  if stream.tokenizer is not None:
    meta["tokenizer_fingerprint"] = stream.tokenizer.fingerprint
  if frozen is not None:
    meta["frozen_digest"] = frozen_digest(frozen)
  if origins:  # {work directory: step} of the runs that it was begun from
    meta["origins"] = dict(origins)
  about = provenance.describe(
    argv=sys.argv,
    mesh=dict(r.mesh.shape),
    run=ours.as_json(),
    parameters=tree.count(r.state.params),
    flops_per_step=r.flops_per_step,
    seed=config["seed"],
    **meta,
  )
  there = start and (workdir / "config.json").is_file()
  # Checkpoints know their config by its hash, also where it is but spelt anew.
  if there and (
    changed or written_fingerprint(workdir) != meta["config_sha256"]
  ):
    journal.write(_free(workdir, start), as_written(workdir))
  for change in changed:
    journal.event(
      "change", start, key=change.key, old=change.old, new=change.new
    )
  journal.event("restart" if start else "start", start, **meta)
  name = f"run.{start}.json" if start else "run.json"

  meta |= {
    "model": config["model"],
    "packages": about["packages"],
    "code_sha256": about["code"]["sha256"],
    "numerics": provenance.numerics(),
  }

  def with_program(sha256: str) -> None:
    meta["hlo_sha256"] = sha256
    journal.write(name, about | {"hlo_sha256": sha256})
    _same_program(manifest, meta, ("hlo_sha256",), journal, changed)

  journal.write("config.json", config)
  journal.config(start, config)
  journal.write(name, about)
  _same_program(
    manifest, meta, ("packages", "code_sha256", "numerics"), journal
  )
  return meta, with_program


def _free(workdir: Path, start: int) -> str:
  """A name for the config of before a change: none is written over another."""
  name, number = f"config.before-{start}.json", 1
  while os.path.lexists(workdir / name):
    number += 1
    name = f"config.before-{start}.{number}.json"
  return name


def _same_program(manifest, meta, keys, journal: Journal, meant=()) -> None:
  """Tells what of the program is not as it was: that may change results."""
  if manifest is None:
    return
  for change in history.program_changes(manifest, meta, keys, meant):
    journal.event("change", manifest["step"], key=change.key, old=change.old,
                  new=change.new)  # fmt: skip
