"""Does a teacher help a student of half its layers, at equal steps?

  python -m aigc_jax.train --config=experiments/bert/small.py \
    --workdir=runs/bert
  python -m aigc_jax.sweep --sweep=experiments/distillation/sweep.py \
    --out=runs/distillation
  python -m aigc_jax.report table runs/distillation

Two arms start as the teacher's first layer, see the same rows and take the same
steps; one of them is not told what the teacher says.
"""

from aigc_jax.scaling.space import Sweep, arms, repeat

ALONE = {"objective.soft": 0.0, "objective.hard": 1.0, "objective.cosine": 0.0}


def get_sweep():
  tried = arms(alone=ALONE, teacher={})
  return Sweep(
    "experiments/distillation/student.py", repeat(tried, seeds=3),
    baseline="alone",
  )  # fmt: skip
