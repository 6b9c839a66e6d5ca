"""The largest batch that fits, and what each size brings in tokens a second.

  python -m experiments.speed.batches --config=configs/bench.py:gpt2_124m

Doubles the batch from --first while the compiled step, its state included,
fits into the memory that is free (or --limit_gib), then tries the middle of
the last two. Prints a table and one line of JSON.
"""

import json

import jax
from absl import flags

from aigc_jax import command, run
from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.timing import machine, stepping, switches

GIB = 2**30


def needs(memory) -> int:
  """Bytes of a compiled step: what it is given, makes and uses meanwhile."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def attempt(config: run.Config, mesh, limit: int, steps: int) -> dict:
  """What a batch needs and, where that fits, how fast it is."""
  found = {"batch": config["data"]["batch"], "fits": False, "bytes": 0}
  try:
    timed = stepping.Timed(run.build(config, mesh))
    found["bytes"] = needs(timed.compiled.memory_analysis())
    if found["bytes"] > limit:
      return found
    timed.step(stepping.WARM_UP)
    for _ in range(stepping.WINDOWS):
      timed.window(steps // stepping.WINDOWS)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return found
  ms = timed.numbers()["ms"]["median"]
  rate = timed.run.tokens_per_step / ms * 1e3
  return found | {"fits": True, "ms": ms, "tokens_per_second": rate}


def main() -> int:
  values = flags.FLAGS
  if values.config is None:
    raise BadConfig("--config=PATH.py is missing, such as configs/bench.py")
  config = run.read(values.config)
  mesh = run.make_mesh(config)
  free = machine.free_bytes(mesh.devices.flat[0])
  limit = int(values.limit_gib * GIB) or int(0.95 * free)
  found = []

  def fits(batch: int) -> bool:
    one = switches.changed(config, {"data.batch": batch})
    found.append(attempt(one, mesh, limit, values.steps))
    return found[-1]["fits"]

  with jax.set_mesh(mesh):
    batch = values.first
    while batch <= values.last and fits(batch):
      batch *= 2
    if batch <= values.last and batch // 4 * 3 > batch // 2:
      fits(batch // 4 * 3)
  rows = [
    (
      x["batch"], f"{x['bytes'] / GIB:.2f}",
      f"{x['ms']:.2f}" if x["fits"] else "does not fit",
      f"{x['tokens_per_second']:,.0f}" if x["fits"] else "",
    )
    for x in found
  ]  # fmt: skip
  print(table(("batch", "GiB", "ms", "tokens/s"), rows))
  print(json.dumps({"limit_bytes": limit, "batches": found}))
  return 0


if __name__ == "__main__":
  flags.DEFINE_integer("first", 8, "the batch to start from")
  flags.DEFINE_integer("last", 1024, "the largest batch to try")
  flags.DEFINE_integer("steps", 10, "timed steps of each, in 5 windows")
  flags.DEFINE_float("limit_gib", 0.0, "memory to fit into; 0: what is free")
  command.main(main, config=True)
