"""Where a run stands that goes on: what it consumed, what comes next.

A checkpoint says how much the run had consumed and which example of its data
comes next. What is left to do is settled from that and from the config of now.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from aigc_jax import data
from aigc_jax.run.build import Run
from aigc_jax.run.settings import Config, config_file, config_in
from aigc_jax.terminal import counted
from aigc_jax.trainer.consumed import EXAMPLES, Consumed, of_meta
from aigc_jax.trainer.journal import METRICS, rows


@dataclasses.dataclass(frozen=True)
class Standing:
  """A run and its data as they go on.

  before: the meta of the checkpoint, or nothing. derived: what it does not say
  itself, where it is from before there was a count.
  """

  run: Run
  stream: data.Stream
  before: Mapping
  derived: Mapping | None = None

  def meta(self, step: int) -> dict:
    """Where in the data the run stands at a step, for its checkpoint."""
    return {
      "position": self.stream.position(step),
      "batches": self.stream.batches,
    }

  def epochs(self) -> str:
    """A line: how often the whole run goes through its data.

    By what it consumes: batches that are passed over are not seen.
    """
    before = (of_meta(self.before) or Consumed()).units.get(EXAMPLES, 0)
    examples = before + self.stream.taken(self.run.steps)
    found = self.stream.epochs(examples)
    named = len(found) > 1
    each = ", ".join(f"{n:.2f}" + f" of {name}" * named for name, n in found)
    seen = counted(examples, "example")
    return f"to step {self.run.steps:,}: {seen}, {each} epochs"


def going_on(
  workdir: Path, manifest: Mapping | None, r: Run, stream: data.Stream
) -> Standing:
  """The run of this checkpoint, or a new one where there is none."""
  if manifest is None:
    return Standing(r, stream, {})
  before, step, derived = dict(manifest["meta"]), manifest["step"], None
  if not {"consumed", "position", "batches"} <= before.keys():
    derived = _derived(workdir, step, before, r)
    before |= derived
    logging.warning(
      "the checkpoint of step %d is from before there was a count of what a "
      "run consumes. Taken from its rows: %s; next in the data: example %d",
      step, derived["consumed"]["units"], derived["position"],
    )  # fmt: skip
  return Standing(
    r.going_on(step, of_meta(before) or Consumed()),
    stream.going_on(step, before["position"], before["batches"]),
    before,
    derived,
  )


def _derived(workdir: Path, step: int, meta: Mapping, r: Run) -> dict:
  """What a checkpoint would say that was made before there was a count.

  Its program wrote into each row what it took a step to be, and went on in the
  data by steps times the batch.
  """
  d = _config_of(workdir, meta.get("config_sha256"))["data"]
  known = [x for x in rows(workdir / METRICS) if _counts(x, step)]
  row = known[-1] if known else {"step": 1, **r.each.as_row()}
  tokens, flops = (
    int(row[name] * step // row["step"]) for name in ("tokens", "flops")
  )
  units = {EXAMPLES: tokens // d["length"], "tokens": tokens}
  return {
    "consumed": Consumed(units, flops).as_meta(),
    "position": data.first_example(step, d["batch"], d["skip_steps"]),
    "batches": [(0, d["batch"])],
  }


def _counts(row: Mapping, step: int) -> bool:
  """Whether a row counts tokens and FLOPs, up to `step` at most."""
  numbers = [row.get(name) for name in ("step", "tokens", "flops")]
  return (
    all(type(x) in (int, float) for x in numbers) and 0 < row["step"] <= step
  )


def _config_of(workdir: Path, sha256: str | None) -> Config:
  """The config a checkpoint was made with, as far as it is still there."""
  return config_in(workdir, config_file(workdir, sha256) or "config.json")
