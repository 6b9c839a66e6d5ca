"""A run in numbers: parameters, memory, tokens, FLOPs; nothing is compiled."""

import math
from collections.abc import Iterable

import jax

from aigc_jax import chips, run, sharding, tree
from aigc_jax.run import budget
from aigc_jax.terminal import counted

# In parts of a model too: of ids, types, labels, positions and class tokens.
EMBEDDINGS = ("*embed*/table", "*position*/table", "*token*/table")


def headline(r: run.Run, extent: str = "") -> str:
  """One line: the model, the mesh, the length of the run.

  extent: what stands for the length, of what is no run.
  """
  mesh = " x ".join(f"{n}={s}" for n, s in r.mesh.shape.items() if s > 1)
  device = r.mesh.devices.flat[0].device_kind
  return (
    f"{tree.count(r.state.params):,} parameters, {r.mesh.size} x {device}"
    f"{f' ({mesh})' if mesh else ''}, {extent or _extent(r)} of "
    f"{r.units_per_step:,} {r.unit}"
  )


def _extent(r: run.Run) -> str:
  """How many steps, or what ends the run: how many those are depends on it.

  A run that goes on may have consumed a part of a total by steps of other size.
  """
  found = budget.total(r.config, tree.count(r.state.params))
  if found is None:
    return counted(r.steps, "step")
  unit, amount = found
  if unit == "flops":
    return f"up to {amount:.6g} FLOPs by steps"
  return f"up to {amount:,} {unit} by steps"


def describe(
  config: run.Config, mesh: jax.sharding.Mesh, allowed: Iterable[str] = ()
) -> str:
  """What --dry_run prints; raises BadConfig for what could not run.

  allowed: keys of --allow_change, see `run.check_origin`.
  """
  r = run.build(config, mesh)
  run.check_inputs(config)
  run.note_inputs(config)
  run.check_evaluators(config)
  run.check_origin(config, allowed=allowed)
  with jax.set_mesh(mesh):
    jax.eval_shape(r.step, r.state, r.batch)
  parts = [
    parameters(r),
    *multipliers(r),
    memory(r),
    length(r, run.data_of(config).prepared()),
  ]
  return "\n\n".join(parts)


def parameters(r: run.Run) -> str:
  """A table: path, shape, layout, how it is drawn and moved, count.

  deviation: of fresh values. rate: the factor of the learning rate. eps: that
  of optim.eps, shown where one is not 1.
  """
  params, fresh = r.state.params, run.deviations(r.model)
  by_size = any(t.epsilon != 1 for t in r.treatments.values())
  rows = [
    (
      name,
      "x".join(map(str, x.shape)),
      _layout(x),
      f"{fresh[name]:.3g}",
      f"{r.treatments[name].learning_rate_factor:.4g}",
      f"{r.treatments[name].weight_decay:.4g}",
      *([f"{r.treatments[name].epsilon:.4g}"] * by_size),
      f"{math.prod(x.shape):,}",
    )
    for name, x in tree.flat(params).items()
  ]
  total = tree.count(params)
  embed = sum(
    math.prod(x.shape)
    for name, x in tree.flat(params).items()
    if tree.match(EMBEDDINGS, name)
  )
  header = (
    "parameter", "shape", "mesh axes", "deviation", "rate", "decay",
    *(["eps"] * by_size), "count",
  )  # fmt: skip
  empty = [""] * (len(header) - 2)
  rows.append(("all", *empty, f"{total:,}"))
  rows.append(("all but embeddings", *empty, f"{total - embed:,}"))
  return table(header, rows)


def multipliers(r: run.Run) -> list[str]:
  """A table of what a model that follows a base multiplies by, if it does."""
  rule = getattr(r.model, "parametrization", None)
  if rule is None or not rule.grows:
    return []
  scale = rule.growth("H") ** -1
  rows = [
    ("width of the stream", f"{rule.growth('D'):.4g} x the base's"),
    ("width of a head", f"{rule.growth('H'):.4g} x"),
    ("layers", f"{rule.growth('L'):.4g} x"),
    ("scores, as the base has them", f"x {scale:.4g}"),
    ("what a block adds", f"x {rule.residual:.4g}"),
    ("logits", f"x {rule.logits:.4g}"),
  ]
  return [table((f"parametrization {rule.kind}", ""), rows)]


def _layout(x: jax.ShapeDtypeStruct) -> str:
  axes = [".".join(a) if isinstance(a, tuple) else a for a in x.sharding.spec]
  return ",".join(a or "-" for a in axes) if any(axes) else ""


def memory(r: run.Run) -> str:
  """Bytes of the state on each device, and what the chip has."""
  kinds = {
    "parameters": r.state.params,
    "optimizer state": r.state.opt_state,
    "gradients": r.state.params,
    "average": r.state.average,
    "stats": r.state.stats,
    "stats of the average": r.state.average_stats,
    "frozen": r.state.frozen,
  }
  kinds = {name: part for name, part in kinds.items() if part is not None}
  rows = [(name, size(per_device(part))) for name, part in kinds.items()]
  total = sum(per_device(part) for part in kinds.values())
  rows.append(("together", size(total)))
  chip = chips.find(r.mesh.devices.flat[0].device_kind)
  if chip is not None:
    rows.append((f"a {chip.name} has", size(chip.memory)))
  return table(("memory per device, without activations", ""), rows)


def per_device(part) -> int:
  """Bytes of an abstract tree that one device holds."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(part)
  )


def length(r: run.Run, manifests: list[dict] | None) -> str:
  """Steps, tokens, epochs, FLOPs."""
  steps, unit = r.steps, r.unit
  units = steps * r.units_per_step
  rows = [
    ("steps", f"{steps:,}"),
    (f"{unit} per step", f"{r.units_per_step:,}"),
    (unit, f"{units:,}"),
  ]
  if manifests is None:
    rows.append(("epochs", "unknown: the data is not prepared yet"))
  else:
    rows += epochs(units, unit, manifests, r.config["data"].get("sources"))
  count = tree.count(r.state.params)
  rows += [
    (f"{unit} per parameter", f"{units / max(count, 1):.2f}"),
    (
      f"FLOPs per {unit.removesuffix('s')}",
      f"{r.flops_per_step / r.units_per_step:.4g}",
    ),
    ("FLOPs", f"{r.flops_per_step * steps:.4g}"),
    ("parts of a batch", str(sharding.batch_shards(r.mesh))),
  ]
  peak = chips.peak_flops(r.mesh)
  if peak:
    hours = r.flops_per_step * steps / (0.4 * peak) / 3600
    rows.append(("hours at 40 % of the peak", f"{hours:.2f}"))
  return table(("the run", ""), rows)


def epochs(
  units: int, unit: str, manifests: list[dict], sources: list[dict] | None
) -> list[tuple]:
  """Rows: how much data there is, how often each source is gone through.

  That goes by the weights of the sources, of which those of 0 are not read.
  """
  weights = [1.0]
  if len(manifests) > 1:
    weights = [source.get("weight", 1.0) for source in sources]
  used = [x for x in zip(manifests, weights, strict=True) if x[1] > 0]
  whole, total = sum(m[unit] for m, _ in used), sum(w for _, w in used)
  rows = [(f"{unit} of the data", f"{whole:,}")]
  for i, (manifest, weight) in enumerate(used):
    name = f" of {manifest.get('name', f'source {i}')}" * (len(used) > 1)
    times = units * weight / total / max(manifest[unit], 1)
    rows.append((f"epochs{name}", f"{times:.3f}"))
  return rows


def table(header: tuple, rows: list[tuple]) -> str:
  """Columns of text, the last one to the right."""
  rows = [tuple(map(str, row)) for row in (header, *rows)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = []
  for row in rows:
    cells = [cell.ljust(w) for cell, w in zip(row, widths, strict=True)]
    cells[-1] = row[-1].rjust(widths[-1])
    lines.append("  ".join(cells).rstrip())
  lines.insert(1, "  ".join("-" * w for w in widths))
  return "\n".join(lines)


def size(nbytes: float) -> str:
  """In the largest unit of which there is a tenth: 0.125 GiB, 12.500 MiB."""
  for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
    if nbytes >= unit / 10:
      return f"{nbytes / unit:,.3f} {name}"
  return f"{nbytes / 2**10:,.3f} KiB"
