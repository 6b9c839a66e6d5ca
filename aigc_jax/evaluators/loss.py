"""Loss over a whole held-out set, each target counted exactly once."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from aigc_jax import data
from aigc_jax.errors import BadData
from aigc_jax.metrics import Mean

Sums = dict[str, tuple[float, float]]  # name -> summed values and weights

RAW = "raw"  # the parameters themselves, not their average
COUNTED = "."  # among the means, which have words for names

AHEAD = 2  # batches in flight: the device waits for no host, memory is bounded


class Loss:
  """evaluate(step, state) -> {"eval/<name>/loss": ...} on `mesh`.

  score(params, batch, key) -> {name: Mean} as in training; its "nll" counts
  (or "loss", without one), so no auxiliary loss is in the result. Every other
  mean of the objective, such as an accuracy, is given by its name. `poll` is
  called between batches and may raise, as Stop.check does.

  loss is in nats per token; perplexity, of sets of tokens, is exp(loss);
  bits_per_byte is loss in bits times tokens per byte, beside which stand those
  of gzip and xz where they are known. Sums are added in float64 on the host: no
  mesh, and no padding of the last batch, changes what is counted.
  """

  def __init__(
    self,
    score: Callable,
    eval_set: data.EvalSet,
    mesh: jax.sharding.Mesh,
    *,
    name: str,
    poll: Callable[[], None] | None = None,
    weights: str = RAW,
  ):
    self.eval_set, self.mesh, self.name = eval_set, mesh, name
    self.fingerprint = eval_set.fingerprint
    self.texts_fingerprint = eval_set.texts_fingerprint
    self._poll = poll or _go_on
    self._average = weights != RAW
    self._score = jax.jit(functools.partial(_counted, score))

  def __call__(self, step: int, state) -> dict[str, float]:
    """The metrics by their full names; see the class."""
    found = self.measure(*state.read(self._average))
    return {f"eval/{self.name}/{k}": v for k, v in found.items()}

  def measure(self, params, fixed=None) -> dict[str, float]:
    """The metrics of these parameters. Raises BadData if a target is missed.

    fixed: what else the model reads, `trainer.state.Fixed`.
    """
    sums: Sums = {}
    pending: list[dict[str, Mean]] = []
    with (
      jax.set_mesh(self.mesh),
      data.batches(self.eval_set, self.mesh, 0, self.eval_set.batches) as it,
    ):
      for _, batch in it:
        self._poll()
        pending.append(self._score(params, batch, fixed))
        if len(pending) > AHEAD:
          _add(sums, pending.pop(0))
    for means in pending:
      _add(sums, means)
    total, weight = sums.pop(COUNTED, (0.0, 0.0))
    targets = self.eval_set.targets
    if targets is not None and weight != targets:
      raise BadData(
        f"evaluation {self.name!r} counted {weight:.0f} targets of {targets}"
      )
    loss = total / weight if weight else math.nan  # of nothing: no number
    found, counts = {"loss": loss}, self.eval_set.counts
    if "nll" in sums:
      del sums["nll"]
      if "tokens" in counts and weight:
        found = results(total, weight, counts.get("bytes", 0))
    # A quarter of the noise that no image drew has no mean, which is no fault.
    others = {name: s / w for name, (s, w) in sums.items() if w}
    return (
      found
      | others
      | {
        f"{kind}_bits_per_byte": value
        for kind, value in self.eval_set.yardsticks.items()
      }
    )


def results(nats: float, tokens: float, bytes: int) -> dict[str, float]:
  """Of the summed negative log likelihood: per token and per byte."""
  loss = nats / max(tokens, 1)
  found = {
    "loss": loss,
    # A model worse than exp(700) per token has no perplexity worth the name.
    "perplexity": math.exp(min(loss, 700.0)),
  }
  if bytes:
    found["bits_per_byte"] = nats / math.log(2) / bytes
  return found


def _counted(score: Callable, params, batch, fixed) -> dict[str, Mean]:
  """All means of the objective; COUNTED is what is its loss.

  That is "nll" where it has one: no auxiliary loss is in it.
  """
  known = {} if fixed is None else {"fixed": fixed}
  means = dict(score(params, batch, None, **known))
  loss = means.pop("loss")
  return means | {COUNTED: means.get("nll", loss)}


def _add(sums: Sums, means: dict[str, Mean]) -> None:
  for name, mean in means.items():
    total, weight = sums.get(name, (0.0, 0.0))
    sums[name] = (
      total + float(np.asarray(mean.sum, np.float64)),
      weight + float(np.asarray(mean.weight, np.float64)),
    )


def _go_on() -> None:
  """The poll of an evaluation that nobody stops."""
