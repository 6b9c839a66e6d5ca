"""Greedy decoding and beam search of a small T5 beside transformers, in turns.

  python -m experiments.speed.families.writing [--turns=5] [--new=64]
      [--out=x.json]

One model with the same weights in both, in float32, of the size that its step
is timed in. Sources of 64 tokens, of which none ends what is written: so many
tokens are made by both. Prints medians of milliseconds, ours once compiled, and
how many of the rows are the same in both.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from aigc_jax import hf, run, sharding
from aigc_jax.sampling.beam import Beams, BeamSearch
from aigc_jax.sampling.decode import Engine, Row
from aigc_jax.sampling.logits import Sampling
from experiments.speed.families.sizes import FAMILIES

SOURCE, START, WIDTH = 64, 0, 4
ROWS = (1, 8)


def peer() -> transformers.PreTrainedModel:
  settings, kind, keywords = FAMILIES["t5"]
  torch.manual_seed(0)
  config = getattr(transformers, settings)(**keywords, eos_token_id=None)
  return getattr(transformers, kind)(config).eval()


def loaded(folder: str, mesh):
  """Our model with the weights of an exported one."""
  kwargs = dict(hf.load(folder).kwargs) | {"unroll": None, "dtype": "float32"}
  model = run.model_of({"model": {"kind": "encoder_decoder"} | kwargs})
  abstract = run.abstract_params(model, mesh)
  laid = jax.tree.map(lambda x: x.sharding, abstract)
  return model, hf.read_params(folder, abstract, laid)


def ways(theirs, model, params, new: int) -> dict:
  """{(what is done, by whom): sources -> rows of new tokens}."""
  how = dict(stop_ids=(), positions=0, unrolled=True, start=START)
  engine = Engine(
    model, params, sampling=Sampling(), group=min(new, 256), seed=0, **how
  )
  search = BeamSearch(model, params, beams=Beams(WIDTH), **how)

  def greedy(sources):
    session = engine.start([Row(tuple(s)) for s in sources], new)
    found = [[] for _ in sources]
    while not session.done:
      for row, more in zip(found, session.advance(new), strict=True):
        row += more.tolist()
    return found

  def beams(sources):
    return [kept[0][1] for kept in search(sources, new)]

  def peers(width: int):
    def generate(sources):
      ids = torch.as_tensor(sources)
      with torch.inference_mode():
        out = theirs.generate(
          ids, attention_mask=torch.ones_like(ids), num_beams=width,
          max_new_tokens=new, min_new_tokens=new, do_sample=False,
          decoder_start_token_id=START,
        )  # fmt: skip
      return out[:, 1:].tolist()

    return generate

  return {
    ("greedy", "ours"): greedy,
    ("greedy", "transformers"): peers(1),
    (f"{WIDTH} beams", "ours"): beams,
    (f"{WIDTH} beams", "transformers"): peers(WIDTH),
  }


def compare(made: dict, sources: list, turns: int) -> list[dict]:
  """A row of numbers for each thing that is done of these sources."""
  written = {way: write(sources) for way, write in made.items()}  # compiles
  ms: dict[tuple, list[float]] = {way: [] for way in made}
  for turn in range(turns):
    for way in list(made)[:: -1 if turn % 2 else 1]:
      began = time.perf_counter()
      made[way](sources)
      ms[way].append((time.perf_counter() - began) * 1e3)
  found = []
  for what in dict.fromkeys(what for what, _ in made):
    own, other = (what, "ours"), (what, "transformers")
    pairs = zip(written[own], written[other], strict=True)
    found.append(
      {
        "what": what,
        "rows": len(sources),
        "ours_ms": statistics.median(ms[own]),
        "transformers_ms": statistics.median(ms[other]),
        "same_rows": sum(a == b for a, b in pairs),
        "turns": {by: ms[what, by] for _, by in (own, other)},
      }
    )
  return found


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--new", type=int, default=64)
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  transformers.logging.set_verbosity_error()
  theirs = peer()
  draw = np.random.default_rng(0)
  sources = draw.integers(1, theirs.config.vocab_size, (max(ROWS), SOURCE))
  mesh = sharding.mesh_of(jax.devices()[0])
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
    theirs.save_pretrained(folder)
    made = ways(theirs, *loaded(folder, mesh), args.new)
    found = []
    for n in ROWS:
      for row in compare(made, sources[:n].tolist(), args.turns):
        found.append(row)
        share = row["ours_ms"] / row["transformers_ms"]
        print(
          f"{row['what']}, {n} rows: ours {row['ours_ms']:.0f} ms, "
          f"transformers {row['transformers_ms']:.0f} ms: {share:.2f}; "
          f"{row['same_rows']} of {n} rows are the same",
          flush=True,
        )
  if args.out:
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
