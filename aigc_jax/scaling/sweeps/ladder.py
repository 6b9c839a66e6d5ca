"""Writes a sweep: sizes of one model at budgets of compute, counted exactly.

Every size at every budget is an isoFLOP grid; a budget for each size is a
ladder. Heads keep their width, so that a width is so many heads, and a run has
as many steps as come nearest to its budget by the count that training itself
makes of its steps.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence

from aigc_jax import run
from aigc_jax.errors import BadConfig, choose
from aigc_jax.scaling.sweeps.plan import Cost, cost_of
from aigc_jax.trainer.consumed import TOTALS

FEWEST = 10  # steps, below which a run is no point of a law

# Peak learning rate of a width, from that of the config at its own width.
RULES = {
  "width": (
    "falls as one over the width, as muP has it for Adam and hidden weights",
    "RATE * WIDTH / dim",
  ),
  "root": (
    "falls as one over the root of the width",
    "RATE * (WIDTH / dim) ** 0.5",
  ),
  "constant": ("is the same at every width", "RATE"),
}
# Keys that a run sets by itself, beside those of its size.
OWN = (
  "steps", "optim.learning_rate", "optim.warmup_steps", "optim.warmup_fraction",
  "optim.decay_steps",
)  # fmt: skip
HEADER = (
  "layers x width", "parameters", "budget", "FLOPs", "steps", "tokens",
  "tokens per parameter",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Size:
  """A size of the model: the keys that it sets, and what a step of it takes."""

  model: dict[str, int]
  each: Cost  # of one step

  @property
  def name(self) -> str:
    return f"{self.model['layers']}x{self.model['dim']}"


@dataclasses.dataclass(frozen=True)
class Rung:
  """A run: a size, the budget it is for, and its steps."""

  size: Size
  budget: float
  steps: int

  @property
  def flops(self) -> float:
    return self.steps * self.size.each.flops

  @property
  def tokens(self) -> int:
    return self.steps * self.size.each.amount

  @property
  def ratio(self) -> float:
    return self.tokens / self.size.each.parameters


@dataclasses.dataclass(frozen=True)
class Ladder:
  """All runs. left_out: those that are none, each with the reason."""

  rungs: tuple[Rung, ...]
  left_out: tuple[str, ...]
  rule: str
  rate: float  # peak learning rate of the config
  width: int  # of the config
  warmup: float  # share of the steps
  total: str  # the key of the config that says when a run ends, if not steps


def ladder(
  config: Mapping,
  *,
  budgets: Sequence[str],
  sizes: Sequence[str],
  pairs: bool = False,
  rule: str = "width",
  ratios: Sequence[str] = (),
) -> Ladder:
  """The runs of these sizes at these budgets.

  budgets: FLOPs, "1e14". sizes: "LAYERSxWIDTH", or "WIDTH" with the layers of
  the config. pairs: the first size at the first budget and so on, not each at
  each. ratios: the least and the most tokens per parameter. Raises BadConfig.
  """
  choose(rule, RULES, "--rule")
  config = run.read(config)
  amounts = [_number("budgets", text) for text in budgets]
  if not amounts or not sizes:
    raise BadConfig(
      "a ladder takes --budgets=1e14,3e14 (FLOPs of a run) and --sizes=2x64,"
      "4x128 (layers x width)"
    )
  for name, given in (("budgets", amounts), ("sizes", sizes)):
    if len(set(given)) < len(given):
      raise BadConfig(
        f"--{name}={','.join(map(str, given))}: one is there twice"
      )
  low, high = _range(ratios)
  made = [_size(config, text) for text in sizes]
  if pairs and len(made) != len(amounts):
    raise BadConfig(
      f"--pairs takes a budget for each size: {len(amounts)} budgets, "
      f"{len(made)} sizes"
    )
  wanted = (
    zip(amounts, made, strict=True)
    if pairs
    else ((amount, size) for amount in amounts for size in made)
  )
  rungs, out = [], []
  for amount, size in wanted:
    rung = Rung(size, amount, _steps(config, size, amount))
    if low <= rung.ratio <= high:
      rungs.append(rung)
    else:
      out.append(
        f"{size.name} at {amount:g} FLOPs: {rung.ratio:.3g} tokens a parameter"
      )
  if not rungs:
    raise BadConfig(
      f"--tokens_per_parameter={','.join(ratios)} leaves no run: "
      + "; ".join(out)
    )
  return Ladder(
    tuple(rungs),
    tuple(out),
    rule,
    config["optim"]["learning_rate"],
    config["model"]["dim"],
    _warmup(config),
    next((key for key in TOTALS if config[key] is not None), ""),
  )


def _number(flag: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value > 0):
    raise BadConfig(f"--{flag}: {text!r} is no number above 0")
  return value


def _range(ratios: Sequence[str]) -> tuple[float, float]:
  if not ratios:
    return 0.0, math.inf
  if len(ratios) != 2:
    raise BadConfig(
      f"--tokens_per_parameter={','.join(ratios)}: expected LOW,HIGH"
    )
  low, high = (_number("tokens_per_parameter", text) for text in ratios)
  return low, high


def _size(config: run.Config, text: str) -> Size:
  """One size, its heads as wide as those of the config."""
  found = re.fullmatch(r"(?:(\d+)x)?(\d+)", text)
  if not found:
    raise BadConfig(
      f"--sizes: {text!r} is no size: WIDTH or LAYERSxWIDTH, such as 4x128"
    )
  model = config["model"]
  layers, dim = int(found[1] or model["layers"]), int(found[2])
  keys = {"layers": layers, "dim": dim, **_heads(model, dim)}
  keys["mlp_dim"] = _scaled(model, "mlp_dim", dim)
  steps = config["compute"]["steps_per_call"]
  one = config | {
    "model": model | keys,
    "steps": steps,
    **dict.fromkeys(TOTALS),
    "optim": config["optim"] | {"warmup_steps": 0, "warmup_fraction": None,
                                "decay_steps": None},
  }  # fmt: skip
  try:
    cost = cost_of(one)
  except BadConfig as error:
    raise BadConfig(f"--sizes: {text}: {error}") from None
  each = Cost(cost.parameters, 1, cost.amount // steps, cost.flops / steps)
  return Size(keys, each)


def _heads(model: Mapping, dim: int) -> dict[str, int]:
  """Heads of the same width, and key heads in the same proportion to them."""
  counts = {key: model[key] for key in ("heads", "kv_heads")}
  if model["kv_heads"] == 1:
    del counts["kv_heads"]  # one for all, at any width
  whole = math.lcm(*(model["dim"] // math.gcd(model["dim"], n)
                     for n in counts.values()))  # fmt: skip
  if dim % whole:
    below, above = dim // whole * whole, -(-dim // whole) * whole
    raise BadConfig(
      f"--sizes: a width of {dim} gives no whole number of heads: the config "
      f"has {model['heads']} of them, and {model['kv_heads']} of keys, at a "
      f"width of {model['dim']}. Take {f'{below} or ' * bool(below)}{above}, "
      "or other --config.model.heads"
    )
  scaled = {key: n * dim // model["dim"] for key, n in counts.items()}
  return {"kv_heads": 1, "head_dim": model["head_dim"]} | scaled


def _scaled(model: Mapping, key: str, dim: int) -> int:
  """A width in proportion to that of the model, to a multiple of 8."""
  return max(8, round(model[key] * dim / model["dim"] / 8) * 8)


def _steps(config: run.Config, size: Size, budget: float) -> int:
  """The steps that come nearest to a budget, in whole calls of the device."""
  call = config["compute"]["steps_per_call"]
  steps = round(budget / size.each.flops / call) * call
  if steps < FEWEST:
    raise BadConfig(
      f"--budgets: {budget:g} FLOPs are {budget / size.each.flops:.1f} steps of"
      f" {size.name} ({size.each.flops:.4g} each): a run takes {FEWEST}. Take "
      f"budgets from {FEWEST * size.each.flops:.2g}, smaller sizes, or a "
      "smaller --config.data.batch"
    )
  return steps


def _warmup(config: run.Config) -> float:
  """The share of its steps that the config warms up for."""
  optim = config["optim"]
  if optim["warmup_fraction"] is not None:
    return optim["warmup_fraction"]
  steps = config["steps"] or 0
  return min(0.1, (optim["warmup_steps"] or 0) / steps) if steps else 0.02


def rows(made: Ladder) -> list[tuple]:
  """The runs as rows of a table under HEADER."""
  return [
    (
      r.size.name,
      f"{r.size.each.parameters:,}",
      f"{r.budget:g}",
      f"{r.flops:.6g}",
      f"{r.steps:,}",
      f"{r.tokens:,}",
      f"{r.ratio:.2f}",
    )
    for r in made.rungs
  ]


def source(
  made: Ladder,
  config: str,
  settings: Sequence[tuple[str, str | None]],
  seeds: int = 1,
) -> str:
  """The text of the sweep file. settings: keys set for all, as on a line."""
  why, formula = RULES[made.rule]
  sizes = {rung.size.name: rung.size for rung in made.rungs}
  own = {*(f"model.{key}" for key in made.rungs[0].size.model), *OWN, *TOTALS}
  shared = [(key, text) for key, text in settings if key not in own]
  lines = [
    f'"""{len(made.rungs)} runs: {len(sizes)} sizes by compute, of CONFIG.',
    "",
    "  python -m aigc_jax.sweep --sweep=THIS.py --out=DIR --parallel=N",
    "  python -m aigc_jax.fit DIR --law=isoflop",
    "",
    "Written by `python -m aigc_jax.sweep ladder`; FLOPs are those that",
    "training counts of its own steps. Change whatever you like.",
    '"""',
    "",
    "from aigc_jax.scaling.space import Sweep, arm, chain, product, repeat",
    "",
    f"CONFIG = {_text(config)}",
    "# The peak learning rate of the config, at its width.",
    f"RATE, WIDTH = {made.rate!r}, {made.width}",
    f"WARMUP = {made.warmup:.4g}  # share of the steps",
    f"SEEDS = {seeds}",
    "",
    "# Name: what the size is; parameters and FLOPs of a step.",
    "SIZES = {",
  ]
  for name, size in sizes.items():
    each = size.each
    lines += [
      f"  # {each.parameters:,} parameters, {each.flops:.6g} FLOPs a step",
      f'  "{name}": dict(',
      *(f"    {key}={value}," for key, value in size.model.items()),
      "  ),",
    ]
  lines += [
    "}",
    "# Budget, size, steps; how near they come, and tokens per parameter.",
    "RUNS = (",
  ]
  lines += [
    f'  ({_plain(r.budget)}, "{r.size.name}", {r.steps}),'
    f"  # {r.flops:.4g} FLOPs, {r.ratio:.1f}"
    for r in made.rungs
  ]
  lines += [
    ")",
    "# Keys that all runs share.",
    *_literal("SHARED", shared),
    "",
    "",
    "def learning_rate(dim):",
    f'  """{why[0].upper()}{why[1:]}."""',
    f"  return {formula}",
    "",
    "",
    "def run(budget, size, steps):",
    '  """One run, whose schedule ends where it does."""',
    "  model = SIZES[size]",
    '  keys = {f"model.{key}": value for key, value in model.items()}',
    "  keys |= {",
    '    "steps": steps,',
    '    "optim.learning_rate": learning_rate(model["dim"]),',
    '    "optim.warmup_steps": 0,',
    '    "optim.warmup_fraction": WARMUP,',
    '    "optim.decay_steps": None,',
    *[f'    "{made.total}": None,'] * bool(made.total),
    "  }",
    '  return arm(f"{size} at {budget:g}", keys)',
    "",
    "",
    "def get_sweep():",
    "  runs = chain(*(run(*row) for row in RUNS))",
    '  shared = arm("", SHARED)',
    "  return Sweep(CONFIG, repeat(product(runs, shared), seeds=SEEDS))",
    "",
  ]
  return "\n".join(lines)


def _text(text: str) -> str:
  """A text as Python reads it; JSON writes some characters as two halves."""
  return json.dumps(text, ensure_ascii=False)


def _plain(value: float) -> str:
  """1e14 as formatters write it."""
  return re.sub(r"e\+0*", "e", f"{value:g}")


def _literal(name: str, pairs: Sequence[tuple[str, str | None]]) -> list[str]:
  """Lines that set a name to a dict; a flag without a value is True."""
  if not pairs:
    return [f"{name} = {{}}"]
  rows = [
    f"  {_text(key)}: {True if text is None else _text(text)},"
    for key, text in pairs
  ]
  return [f"{name} = {{", *rows, "}"]
