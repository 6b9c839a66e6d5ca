"""Learning rates as pure functions of the step.

A schedule is `step -> float32`, step counting from 0, which runs under jit and
takes arrays of steps. All of them warm up linearly: step s < warmup_steps is at
(s + 1) / (warmup_steps + 1) of the peak, so that no step is spent at zero and
step `warmup_steps` is the first at the peak.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from aigc_jax.errors import BadConfig, choose

Schedule = Callable[[jax.Array], jax.Array]

# Without a `decay_steps`, the part of a run in which wsd decays
# (arXiv:2405.18392 finds 10 to 20 per cent enough).
WSD_DECAY = 0.2


def constant(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """1 for ever."""
  return jnp.ones_like(step)


def cosine(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """Half a cosine from 1 down to final_fraction, which then stays."""
  x = _progress(step, warmup_steps, decay_steps)
  return final_fraction + (1 - final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * x))


def linear(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """A line from 1 down to final_fraction, which then stays."""
  x = _progress(step, warmup_steps, decay_steps)
  return 1 - (1 - final_fraction) * x


def rsqrt(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """sqrt(warmup_steps / step), never below final_fraction: knows no end."""
  start = max(warmup_steps, 1)
  return jnp.maximum(final_fraction, jnp.sqrt(start / jnp.maximum(step, start)))


def wsd(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """Warm-up, stable, decay: 1, then a line to final_fraction at the end."""
  x = _progress(step, max(warmup_steps, steps - decay_steps), decay_steps)
  return 1 - (1 - final_fraction) * x


def wsd_cosine(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """The same with half a cosine for a decay."""
  x = _progress(step, max(warmup_steps, steps - decay_steps), decay_steps)
  return final_fraction + (1 - final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * x))


def wsd_sqrt(step, *, warmup_steps, decay_steps, final_fraction, steps):
  """The same with 1 - sqrt(share of the decay) (arXiv:2405.18392)."""
  x = _progress(step, max(warmup_steps, steps - decay_steps), decay_steps)
  return 1 - (1 - final_fraction) * jnp.sqrt(x)


# Each maps a float32 step to a factor of the peak, after the warm-up.
SCHEDULES: dict[str, Callable] = {
  "constant": constant,
  "cosine": cosine,
  "linear": linear,
  "rsqrt": rsqrt,
  "wsd": wsd,
  "wsd_cosine": wsd_cosine,
  "wsd_sqrt": wsd_sqrt,
}

ENDLESS = ("constant", "rsqrt")
AT_THE_END = ("wsd", "wsd_cosine", "wsd_sqrt")  # is where they decay


def build(
  *,
  kind: str,
  learning_rate: float,
  warmup_steps: int | None,
  decay_steps: int | None,
  final_fraction: float,
  steps: int,
  warmup_fraction: float | None = None,
) -> Schedule:
  """The schedule `kind` of a run of `steps` with its peak at learning_rate.

  warmup_fraction: of the steps, in place of warmup_steps, which is then None.
  decay_steps: how many steps the decay takes. None is everything after the
  warm-up, or the last fifth of the run for wsd, which decays at the end of the
  run where the others begin right after the warm-up. Raises BadConfig.
  """
  shape = choose(kind, SCHEDULES, "optim.schedule")
  if learning_rate <= 0:
    raise BadConfig(
      f"optim.learning_rate={learning_rate}: expected a positive number"
    )
  warmup_steps = warmup_steps or 0
  if warmup_steps < 0:
    raise BadConfig(
      f"optim.warmup_steps={warmup_steps}: expected 0 for none, or more"
    )
  if warmup_fraction is not None and not 0 <= warmup_fraction <= 1:
    raise BadConfig(
      f"optim.warmup_fraction={warmup_fraction}: expected a fraction of the "
      "steps, from 0 to 1, or None"
    )
  if warmup_fraction:
    if warmup_steps:
      raise BadConfig(
        f"optim.warmup_steps={warmup_steps} and optim.warmup_fraction="
        f"{warmup_fraction} both say how long the warm-up is: leave one out, "
        "--config.optim.warmup_steps=None or "
        "--config.optim.warmup_fraction=None"
      )
    warmup_steps = round(warmup_fraction * steps)
  if not 0 <= final_fraction <= 1:
    raise BadConfig(
      f"optim.final_fraction={final_fraction}: expected a fraction of "
      "the learning rate, from 0 to 1"
    )
  if kind in ENDLESS and decay_steps is not None:
    raise BadConfig(
      f"optim.decay_steps={decay_steps} means nothing to the schedule {kind!r}:"
      " leave it None, or take one of "
      + ", ".join(name for name in SCHEDULES if name not in ENDLESS)
    )
  if decay_steps is not None and decay_steps < 1:
    raise BadConfig(f"optim.decay_steps={decay_steps}: expected 1 or more")
  if warmup_steps >= steps:
    logging.warning(
      "optim.warmup_steps=%d: a run of %d steps never leaves the warm-up: "
      "--config.optim.%s would leave it after a tenth",
      warmup_steps,
      steps,
      f"warmup_steps={steps // 10}"
      if warmup_fraction is None
      else "warmup_fraction=0.1",
    )
  rest = max(1, steps - warmup_steps)
  if decay_steps is None:
    share = round(WSD_DECAY * steps) if kind in AT_THE_END else rest
    decay_steps = min(rest, max(1, share))

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    factor = shape(
      step,
      warmup_steps=warmup_steps,
      decay_steps=decay_steps,
      final_fraction=final_fraction,
      steps=steps,
    )
    warm = (step + 1) / (warmup_steps + 1)
    return learning_rate * jnp.where(step < warmup_steps, warm, factor)

  return schedule


def _progress(step, start: int, length: int):
  """From 0 at `start` to 1 at `start + length`, and flat outside."""
  return jnp.clip((step - start) / length, 0.0, 1.0)
