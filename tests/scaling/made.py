"""Work directories as training leaves them, made by hand."""

import json
from pathlib import Path

import numpy as np

CONFIG = {
  "seed": 0,
  "steps": 40,
  "data": {"batch": 2, "length": 4, "tokenizer": "bytes"},
  "model": {"dim": 8, "qk_norm": False},
  "optim": {"learning_rate": 1e-3},
  "log": {"every_steps": 1},
}
ABOUT = {
  "code": {"commit": "abc"},
  "data_fingerprint": "d0",
  "heldout_fingerprints": {"evaluate.heldout": "h0"},
  "tokenizer_fingerprint": "t0",
}


def power_loss(step, best=2.0):
  """A curve that falls as losses do."""
  return best + 3.0 * step**-0.5


def made_run(
  path: Path,
  *,
  seed: int = 0,
  best: float = 2.0,
  steps: int = 40,
  finished: bool = True,
  loss=None,
  config: dict | None = None,
  about: dict | None = None,
  final: dict | None = None,
  batches: int = 0,
) -> Path:
  """A run of `steps` steps, 8 tokens each, with a row and a held-out loss.

  loss(step) -> training loss, None where it is not finite. config, about:
  keys that replace ours, sections merged. final: more metrics of the last
  evaluation. batches: which order of the data it saw, beside its seed.
  """
  path.mkdir(parents=True)
  merged = json.loads(json.dumps(CONFIG)) | {"seed": seed}
  for key, value in (config or {}).items():
    section, _, name = key.rpartition(".")
    (merged[section] if section else merged)[name] = value
  (path / "config.json").write_text(json.dumps(merged))
  record = ABOUT | {"seed": seed} | (about or {})
  (path / "run.json").write_text(json.dumps(record))
  noise = np.random.default_rng(seed).normal(size=steps + 1) * 0.01
  with open(path / "metrics.jsonl", "w") as file:
    for step in range(1, steps + 1):
      place = dict(step=step, tokens=8 * step, flops=1e3 * step)
      place["seconds"] = 0.5 * step + 0.01 * seed
      value = (
        loss(step) if loss else power_loss(step, best) + float(noise[step])
      )
      rows = [
        place
        | {"data/batch_hash": (1000 * seed + step) ^ batches}
        | {"train/loss": value, "optim/learning_rate": 1e-3 / step}
      ]
      if step % 10 == 0:
        held_out = power_loss(step, best) + 0.01 * seed
        more = (final or {}) if step == steps else {}
        rows.append(place | {"eval/heldout/loss": held_out} | more)
      for row in rows:
        file.write(json.dumps(row) + "\n")
  if finished:
    (path / "result.json").write_text(json.dumps({"step": steps}))
  return path
