"""Coordinate check: how large activations are, and how far steps move them.

A decoder is made at several widths or depths; in each, a few large steps are
taken on one batch, and of every activation the mean of |x| and of |x - x at the
start| is read. Against the size, on logarithmic axes, both are lines whose
slopes are to be 0 where numbers tuned at one size are to serve at another
(arXiv:2203.03466, appendix D.1).

Under muP logits may become smaller with the width, and that is no fault: fresh
ones are sums of chance, with a slope of -1/2, and so moves what of a step is
chance. What the steps have added to the readout is read apart, as
"logits/learnt": flat once the width is larger than the tokens of a batch. So it
is with scores where heads become wider, whose scale is 1 / their width.
Under CompleteP the sum of what fresh layers add has a slope of -1/2 in the
depth, and so has the stream as long as that is larger than the embedding.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import run, sharding, tree
from aigc_jax.errors import BadConfig, choose
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.parametrization import KINDS, TENSORS
from aigc_jax.layers.readout import Readout
from aigc_jax.layers.stack import Stack
from aigc_jax.models.decoder import SIZES, Decoder, resolved, widths
from aigc_jax.trainer.state import State, fresh

# The batch of a run from a step on, as it lies on the device.
Batches = Callable[[run.Run, int], dict[str, jax.Array]]
Sizes = dict[str, list[list[float]]]  # of each activation, by seed and step

AXES = ("width", "depth")
GROWS = ("heads", "head_dim")
# A few small steps need no fast program, and compiling is most of the time.
QUICK = {"cpu": {"xla_backend_optimization_level": 0}}
# Of a module none of whose outputs is an activation of its own.
INSIDE = (Attention, Decoder, Dropout, Mlp, Stack)
# What may become smaller with the width.
FADES = ("logits", "logits/learnt", "stack/scores")
FLAT = 0.2  # of a slope: what is steeper is not


class Line(NamedTuple):
  """log y = slope * log x + offset, by least squares.

  stderr: of the slope, from what is left; None of two points, which any line
  meets.
  """

  slope: float
  offset: float
  stderr: float | None


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
  """The power of x that is nearest to y; None where y is 0 or not finite."""
  y = np.asarray(y, float)
  if not np.all(np.isfinite(y) & (y > 0)):
    return None
  a, b = np.log(np.asarray(x, float)), np.log(y)
  away = a - a.mean()
  slope = float(away @ b / (away @ away))
  offset = float(b.mean() - slope * a.mean())
  if len(a) < 3:
    return Line(slope, offset, None)
  left = b - slope * a - offset
  variance = float(left @ left) / (len(a) - 2)
  return Line(slope, offset, math.sqrt(variance / float(away @ away)))


@dataclasses.dataclass(frozen=True)
class Series:
  """Activations of one parametrization along one axis.

  size and moved: {activation: (step, place on the axis)}, of step 0 to the last
  one; the mean over seeds of |x|, and of |x - x of step 0|. By the width it is
  over all layers, by the depth of the last one: the first ones read what only
  the embedding moves, and are a smaller part of more.
  """

  parametrization: str
  axis: str  # width or depth
  places: tuple[int, ...]
  size: Mapping[str, np.ndarray]
  moved: Mapping[str, np.ndarray]

  @property
  def steps(self) -> int:
    return len(next(iter(self.size.values()))) - 1

  def line(self, what: str, name: str, step: int) -> Line | None:
    """Of `size` or `moved`; None where there is nothing to be fitted."""
    return line(self.places, getattr(self, what)[name][step])

  def slope(self, what: str, name: str, step: int) -> float | None:
    """The exponent alone."""
    found = self.line(what, name, step)
    return None if found is None else found.slope

  @property
  def steep(self) -> dict[str, float]:
    """The slopes of what the steps have moved that are not flat.

    What is not finite any more is steeper than any line.
    """
    return {k: x for k, x in self._slopes.items() if abs(x) > FLAT}

  @property
  def _slopes(self) -> dict[str, float]:
    found = {}
    for name, moved in self.moved.items():
      slope = self.slope("moved", name, -1)
      if slope is None:
        slope = 0.0 if np.all(np.isfinite(moved[-1])) else math.inf
      if name not in FADES or slope > 0:
        found[name] = slope
    return found

  @property
  def worst(self) -> tuple[str, float]:
    """The activation whose movement has the steepest slope, and that."""
    found = self._slopes
    name = max(found, key=lambda name: abs(found[name]))
    return name, found[name]


def class_of(activation: str) -> str:
  """Of the tensor that makes it, as layers/parametrization.py has classes.

  "" for what several make together.
  """
  if activation.startswith("logits"):
    return "output"
  for path, tensor in TENSORS.items():
    module, _, own = path.rpartition("/")
    if (
      "_*" not in own
      and module == activation
      or tree.match((path,), activation)
    ):
      return tensor.role
  return ""


def series(
  config: run.Config,
  axis: str,
  places: Sequence[int],
  *,
  parametrization: str,
  batches: Batches,
  steps: int,
  seeds: int,
  grow: str = "heads",
  say: Callable[[str], None] = lambda text: None,
) -> Series:
  """Measures decoders at these widths or depths. Raises BadConfig.

  grow: what becomes more with the width, heads or the width of each. Where the
  config names no base, that is the smallest of them.
  """
  configs = sized(config, axis, places, parametrization, grow)
  found = []
  for n, each in configs.items():
    layers = slice(-1, None) if axis == "depth" else slice(None)
    found.append(measure(each, range(seeds), steps, batches, layers))
    say(f"{parametrization}, {axis} {n}: {seeds} x {steps} steps")

  def joined(which: int) -> dict[str, np.ndarray]:
    return {
      name: np.stack([np.mean(one[which][name], 0) for one in found], axis=1)
      for name in found[0][which]
    }

  return Series(parametrization, axis, tuple(configs), joined(0), joined(1))


def sized(
  config: run.Config,
  axis: str,
  places: Sequence[int],
  parametrization: str,
  grow: str = "heads",
) -> dict[int, run.Config]:
  """{size: config}, the smallest first; raises BadConfig for what cannot be.

  All are looked at before any is paid for.
  """
  choose(parametrization, KINDS, "--parametrizations")
  places = sorted(set(places))
  if len(places) < 2:
    raise BadConfig(
      f"--{axis}s={','.join(map(str, places))}: a slope needs two or more, "
      f"such as --{axis}s={'64,128,256' if axis == 'width' else '2,4,8'}"
    )
  if places[0] < 1:
    raise BadConfig(f"--{axis}s={places[0]}: expected sizes from 1")
  if config["model"]["kind"] != "decoder":
    raise BadConfig(
      f"model.kind={config['model']['kind']!r}: sizes are changed of a decoder,"
      " such as that of configs/quickstart.py"
    )
  resize = _wider if axis == "width" else _deeper
  found = {n: resize(config, n, grow) for n in places}
  base = found[places[0]]["model"]
  for each in found.values():
    each["model"]["parametrization"] = parametrization
    if config["model"]["base_dim"] is None:
      for key in SIZES:
        if key != "layers":
          each["model"][f"base_{key}"] = base[key]
    if config["model"]["base_layers"] is None:
      each["model"]["base_layers"] = base["layers"]
    run.model_of(_plain(each, 1))
  return found


def _deeper(config: run.Config, n: int, _: str) -> run.Config:
  config = copy.deepcopy(config)
  config["model"] |= widths_of(config["model"]) | dict(layers=n)
  return config


def widths_of(model: Mapping) -> dict[str, int]:
  """Those that a config may leave None, too."""
  keys = ("dim", "heads", "kv_heads", "head_dim", "mlp_dim", "gated")
  return widths(**{key: model[key] for key in keys})


def _wider(config: run.Config, n: int, grow: str) -> run.Config:
  """The config at this width, its other widths in proportion."""
  config = copy.deepcopy(config)
  model = config["model"]
  model |= widths_of(model)
  dim, heads, kv, each = (
    model[key] for key in ("dim", "heads", "kv_heads", "head_dim")
  )
  span = heads * each  # not always the width of the stream
  part, size = ("heads", heads) if grow == "head_dim" else ("head_dim", each)
  if span * n % (dim * size):
    # Widths that do: multiples of this one.
    unit = dim * size // math.gcd(span, dim * size)
    below, above = n // unit * unit, -(-n // unit) * unit
    raise BadConfig(
      f"--widths={n}: heads would span {span * n / dim:g}, which model.{part}="
      f"{size} does not divide: the nearest widths that it does: "
      f"{f'{below} and ' if below else ''}{above}"
    )
  grown = span * n // (dim * size)
  model["dim"], model["mlp_dim"] = n, -(-model["mlp_dim"] * n // dim)
  if grow == "head_dim":
    model["head_dim"] = grown
    return config
  if kv > 1 and kv * grown % heads:
    raise BadConfig(
      f"--widths={n}: {grown} heads are no whole number of groups as in "
      f"model.heads={heads}, model.kv_heads={kv}: take a width of a multiple "
      f"of {heads // math.gcd(kv, heads)} heads, or --grow=head_dim"
    )
  model["heads"], model["kv_heads"] = grown, max(1, kv * grown // heads)
  return config


def measure(
  config: run.Config,
  seeds: Sequence[int],
  steps: int,
  batches: Batches,
  layers: slice = slice(None),
) -> tuple[Sizes, Sizes]:
  """(|x|, |x - x at the start|) by activation: a row of steps for each seed.

  layers: which of them are looked at. The step is the one that trains; what it
  needs is compiled once for all seeds.
  """
  mesh = sharding.mesh_of(jax.devices()[0])
  scale = resolved(config["model"])["attention_scale"]
  scale = scale or config["model"]["head_dim"] ** -0.5
  options = QUICK.get(mesh.devices.flat[0].platform)
  compiled = functools.partial(jax.jit, compiler_options=options)
  with jax.set_mesh(mesh):
    r = run.build(_plain(config, steps), mesh)
    # Layers apart, so that what each of them gives can be heard.
    model = run.model_of(_plain(config, steps, unroll=None))
    batch = batches(r, 0)

    @compiled
    def begin(seed: jax.Array) -> State:
      variables = nn.unbox(r.model.init(jax.random.key(seed), batch))
      return fresh(variables["params"], r.optimizer, seed)

    @compiled
    def read(params: Any, before: Any) -> dict[str, jax.Array]:
      found = activations(model, params, before, batch, scale)
      return {name: x_L[layers] for name, x_L in found.items()}

    step = compiled(r.step)
    size: Sizes = {}
    moved: Sizes = {}
    for seed in seeds:
      state = begin(jnp.uint32(seed))
      before = state.params
      start = jax.device_get(read(before, before))
      rows = [(_means(start), dict.fromkeys(start, 0.0))]
      for _ in range(steps):
        state, _ = step(state, batch)
        now = jax.device_get(read(state.params, before))
        away = {name: x - start[name] for name, x in now.items()}
        rows.append((_means(now), _means(away)))
      for name in start:
        size.setdefault(name, []).append([row[name] for row, _ in rows])
        moved.setdefault(name, []).append([row[name] for _, row in rows])
  return size, moved


def _means(given: Mapping[str, np.ndarray]) -> dict[str, float]:
  return {name: float(np.mean(np.abs(x))) for name, x in given.items()}


def _plain(
  config: run.Config, steps: int, unroll: int | None = 1
) -> run.Config:
  """The config as its activations can be read, at its peak rate from the start.

  In float32, each product by itself, nothing computed again.
  """
  compute = config["compute"] | dict(
    unroll=unroll, remat="none", fuse_projections=False, dtype="float32",
    products="plain", microbatches=1, steps_per_call=1, cast_once=False,
    library="xla",
  )  # fmt: skip
  model = config["model"] | dict(dropout=0.0)
  optim = config["optim"] | dict(
    schedule="constant", warmup_steps=0, decay_steps=None, warmup_fraction=None,
    average=None, spike_sigma=None,
  )  # fmt: skip
  return config | dict(
    model=model, compute=compute, optim=optim, steps=steps, total_tokens=None,
    total_examples=None, total_flops=None, tokens_per_parameter=None,
    frozen={}, init_parts={}, mesh=dict.fromkeys(sharding.AXES, 1),
  )  # fmt: skip


def activations(
  model: Decoder, params: Any, before: Any, batch: Mapping, scale: float
) -> dict[str, jax.Array]:
  """{name: float32 array}: what each module of a decoder gives.

  Names are paths as parameters have them, layers in a leading axis; "stack" is
  the stream after each block, "stack/attention/read" and "stack/mlp/active" are
  what `out` and `down` read, "stack/scores" are those of queries and keys
  before positions turn them, times `scale`, "logits" what the model says, and
  "logits/learnt" what of that its readout has by the steps since `before`.
  """
  found: dict[str, list] = {}
  inside: list[Block] = []

  def note(name: str, value) -> None:
    found.setdefault(name, []).append(value.astype(jnp.float32))

  def listen(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    if isinstance(module, Block):
      inside.append(module)
      x, cache = call(*args, **kwargs)
      inside.pop()
      note("stack", x)
      return x, cache
    y = call(*args, **kwargs)
    if not isinstance(module, INSIDE):
      name = "/".join(("stack",) * bool(inside) + module.path)
      note(name, y[0] if isinstance(y, tuple) else y)
      if name in READ:
        note(READ[name], args[0])
    return y

  with nn.intercept_methods(listen):
    said = model.apply({"params": params}, batch)
  found.pop("head", None)  # a table, no activation
  note("logits", said.logits())
  learnt = said.table_VD - _table(model, before)
  note("logits/learnt", Readout(said.features_BTD, learnt).logits())
  given = {name: jnp.stack(values) for name, values in found.items()}
  return given | {"stack/scores": _scores(given, scale)}


def _table(model: Decoder, params: Any) -> jax.Array:
  return params["embed" if model.head is None else "head"]["table"]


READ = {
  "stack/attention/out": "stack/attention/read",
  "stack/mlp/down": "stack/mlp/active",
}


def _scores(given: Mapping[str, jax.Array], scale: float) -> jax.Array:
  """Of each query and the key at its own position, which turn alike."""
  heads = []
  for part in ("query", "key"):
    made = given[f"stack/attention/{part}"]
    normed = given.get(f"stack/attention/norm_{part}", made)
    heads.append(normed.reshape(made.shape))
  q_LBTNH, k_LBTKH = heads
  each = q_LBTNH.shape[-2] // k_LBTKH.shape[-2]
  return scale * jnp.sum(q_LBTNH * jnp.repeat(k_LBTKH, each, axis=-2), axis=-1)
