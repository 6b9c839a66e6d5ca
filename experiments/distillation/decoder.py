"""A decoder of half the layers beside the run that is its teacher.

  python -m aigc_jax.train --workdir=runs/student \
    --config=experiments/distillation/decoder.py:runs/quickstart

The teacher may be any run of a decoder: the student has its data, its steps and
its optimizer, and starts as every second of its layers. For a narrower one:
--config.model.parts.student.dim=128 --config.init_parts='{}'.
"""

import json
import pathlib

from ml_collections import ConfigDict


def get_config(teacher=""):
  path = pathlib.Path(teacher).expanduser() / "config.json"
  if not teacher or not path.is_file():
    raise ValueError(
      f"preset {teacher!r}: expected the work directory of the teacher, as in "
      "decoder.py:runs/quickstart"
    )
  config = ConfigDict(json.loads(path.read_text()))
  model = config.model.to_dict()
  if model["kind"] != "decoder":
    raise ValueError(f"{teacher} is no run of a decoder: {model['kind']}")
  some = tuple(range(0, model["layers"], 2))
  student = model | dict(layers=len(some))
  config.model = ConfigDict(
    dict(kind="roles", parts=dict(student=student, teacher=model))
  )
  config.frozen = ConfigDict(dict(teacher=teacher))
  config.init_parts = ConfigDict(
    dict(student=dict(part="teacher", layers=some))
  )
  # 5 times what the teacher says, 2 times what comes: as DistilBERT's.
  chunk = config.objective.get("chunk")
  config.objective = ConfigDict(
    dict(kind="distill", temperature=2.0, soft=5.0, hard=2.0, chunk=chunk)
  )
  config.init_from = config.branch_from = config.branch_step = None
  for name, entry in config.evaluate.to_dict().items():
    if entry["kind"] != "loss":  # of the student: python -m aigc_jax.generate
      del config.evaluate[name]
  return config
