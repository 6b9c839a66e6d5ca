"""The alphabet, the rules, the mesh; `named`, `constrain`, `shardings`.

Array axes are letters (B batch, T and S positions, D width, F mlp width, N, K,
H heads, V vocabulary, L layers, E experts, ...). One table says which mesh axes
a letter may take. A mesh axis is spent once per array, in the table's order,
so B takes `fsdp` in activations and D takes it in parameters. Every mesh has
all the axes: size 1 is free. Mesh axis names occur in this file only.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from flax import struct
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aigc_jax.errors import BadConfig
from aigc_jax.terminal import counted

AXES = ("data", "fsdp", "expert", "tensor", "sequence", "pipeline")
REST = "fsdp"  # the axis that takes whatever devices there are by default

# letter -> mesh axes it may take, in order of priority.
RULES: dict[str, tuple[str, ...]] = {
  "L": ("pipeline",),
  "E": ("expert",),
  "B": ("data", "fsdp", "expert"),
  "T": ("sequence",),
  "V": ("tensor",),
  "N": ("tensor",),
  "K": ("tensor",),
  "F": ("tensor",),
  "D": ("fsdp",),
}

_told: set[tuple] = set()


def make_mesh(
  *,
  data: int | None,
  fsdp: int | None,
  expert: int | None,
  tensor: int | None,
  sequence: int | None,
  pipeline: int | None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """The mesh of all devices; one axis may be None and takes the rest.

  Raises BadConfig where the sizes do not multiply to the number of devices.
  """
  sizes = dict(
    zip(AXES, (data, fsdp, expert, tensor, sequence, pipeline), strict=True)
  )
  devices = list(devices or jax.devices())
  for name, size in sizes.items():
    if size is not None and (not isinstance(size, int) or size < 1):
      raise BadConfig(
        f"mesh.{name}={size!r}: expected a positive size, or None for the rest"
      )
  free = [name for name, size in sizes.items() if size is None]
  if len(free) > 1:
    raise BadConfig(f"mesh: only one axis may be None, got {', '.join(free)}")
  fixed = math.prod(size for size in sizes.values() if size is not None)
  for name in free:  # 1 where the others do not fit, to be refused below
    sizes[name] = max(1, len(devices) // fixed)
  if math.prod(sizes.values()) != len(devices):
    shape = " x ".join(f"{n}={s}" for n, s in sizes.items() if s != 1) or "1"
    raise BadConfig(
      f"mesh {shape} does not fit {counted(len(devices), 'device')}: the sizes "
      "must multiply to it (--config.mesh.fsdp=None takes what is left; on a "
      "CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N gives N devices)"
    )
  shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  except NotImplementedError:  # no whole axes of the devices' torus fit
    return Mesh(_split_torus(shape, devices), AXES, axis_types=types)


def _split_torus(shape: tuple[int, ...], devices: list) -> np.ndarray:
  """The devices as an array, axes of their torus split between those of it.

  Raises BadConfig, naming the sizes that fit, where that cannot be either.
  """
  try:
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  except (NotImplementedError, ValueError, AssertionError):
    named = " x ".join(
      f"{n}={s}" for n, s in zip(AXES, shape, strict=True) if s != 1
    )
    torus = "x".join(str(n) for n in _torus(devices))
    raise BadConfig(
      f"mesh {named} cannot be laid out on {len(devices)} x "
      f"{devices[0].device_kind}, a torus of {torus}: let each size divide an "
      "axis of it, or be a product of such sizes"
    ) from None


def _torus(devices: list) -> list[int]:
  """How many devices lie along each axis of the network."""
  coords = [getattr(d, "coords", (i,)) for i, d in enumerate(devices)]
  return [len(set(along)) for along in zip(*coords, strict=True)]


def mesh_of(device: jax.Device) -> Mesh:
  """The mesh of one device."""
  return make_mesh(**dict.fromkeys(AXES, 1), devices=[device])


def split(equation: str) -> tuple[tuple[str, str], str]:
  """ "BTD,DF->BTF" as (("BTD", "DF"), "BTF")."""
  inputs, out = equation.split("->")
  x, w = inputs.split(",")
  return (x, w), out


def spec(letters: str, shape: Sequence[int], mesh) -> PartitionSpec:
  """Which mesh axes each dimension of an array takes.

  A dimension that an axis does not divide is left whole, with one log line.
  """
  if len(letters) != len(shape):
    raise ValueError(f"{letters!r} does not name the axes of shape {shape}")
  spent: set[str] = set(getattr(mesh, "manual_axes", ()))
  taken: dict[int, tuple[str, ...]] = {}
  for letter, axes in RULES.items():
    for i, (name, size) in enumerate(zip(letters, shape, strict=True)):
      if name != letter:
        continue
      parts: list[str] = []
      for axis in axes:
        n = mesh.shape[axis]
        if n == 1 or axis in spent:
          continue
        over = n * math.prod(mesh.shape[a] for a in parts)
        if size % over:
          _tell(letter, size, axis, n, letters)
          continue
        parts.append(axis)
        spent.add(axis)
      taken[i] = tuple(parts)
  entries = [taken.get(i, ()) for i in range(len(shape))]
  return PartitionSpec(*(e[0] if len(e) == 1 else (e or None) for e in entries))


def _tell(letter: str, size: int, axis: str, n: int, letters: str) -> None:
  """One log line for each kind of dimension left whole."""
  key = (letter, size, axis, n)
  # An axis of one is a probe of shapes, or has nothing to cut.
  if size > 1 and key not in _told:
    _told.add(key)
    logging.warning(
      "%s=%d of an array %s is not divisible by mesh axis %s=%d: left whole",
      letter, size, letters, axis, n,
    )  # fmt: skip


def shardings(letters: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  """The sharding of an array whose axes are `letters`."""
  return NamedSharding(mesh, spec(letters, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


@struct.dataclass
class Declared(nn.LogicallyPartitioned):
  """A fresh parameter with its letters, and the deviation it was drawn with."""

  deviation: float = struct.field(default=0.0, pytree_node=False)


def named(init: Callable, letters: str, deviation: float = 0.0) -> Callable:
  """`init` whose result carries its letters, for `of_tree` to read.

  deviation: of the numbers it draws; 0 where all are the same.
  """

  def declared(*args, **kwargs):
    value = init(*args, **kwargs)
    return Declared(value, tuple(letters), deviation=deviation)

  return declared


def of_tree(boxed, mesh: Mesh):
  """A tree of shardings for an abstract tree made with `named`."""

  def one(x):
    if isinstance(x, nn.LogicallyPartitioned):
      return shardings("".join(x.names), x.value.shape, mesh)
    return replicated(mesh)

  return jax.tree.map(
    one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )


def constrain(x: jax.Array, letters: str) -> jax.Array:
  """Says how `x` lies on the mesh in use; nothing happens without one."""
  if alone():
    return x
  mesh = jax.sharding.get_abstract_mesh()
  return jax.lax.with_sharding_constraint(x, spec(letters, x.shape, mesh))


def constrain_rows(x: jax.Array) -> jax.Array:
  """`constrain` for an array of which only the first axis, B, has a rule."""
  return constrain(x, "B" + "." * (x.ndim - 1))


def platform() -> str:
  """ "cpu", "gpu" or "tpu": of the mesh in use, or else of this machine.

  A mesh may be of devices that are described and not here.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def alone() -> bool:
  """Whether the mesh in use, if any, is of a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def heads_apart(query_BTNH: Sequence[int], key_BTKH: Sequence[int]) -> str:
  """Why no device could attend with its own heads alone, or nothing.

  Of the shapes of queries and keys, on the mesh in use.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return ""
  query, key = spec("BTNH", query_BTNH, mesh), spec("BTKH", key_BTKH, mesh)
  if query != key:
    return "query heads that lie on more devices than key heads do"
  return "positions cut over devices" if query[1] is not None else ""


def batch_shards(mesh) -> int:
  """Into how many parts a batch is cut."""
  return math.prod(mesh.shape[axis] for axis in RULES["B"])


def length_shards(mesh) -> int:
  """Into how many parts the positions of a row are cut."""
  return math.prod(mesh.shape[axis] for axis in RULES["T"])


COORDINATOR = "JAX_COORDINATOR_ADDRESS"

# Variables whose presence says that several processes work together, and what
# else must be there for JAX to find the others by itself.
_CLUSTERS = {
  # Of a step of srun; an allocation alone, or its shell, starts one process.
  "SLURM_STEP_NUM_TASKS": "SLURM_STEP_NODELIST",
  "OMPI_COMM_WORLD_SIZE": "OMPI_MCA_orte_hnp_uri",
  "TPU_WORKER_HOSTNAMES": None,
  "MEGASCALE_COORDINATOR_ADDRESS": None,
  "JOB_COMPLETION_INDEX": "KUBERNETES_SERVICE_HOST",
}


def cluster(environ=os.environ) -> str | None:
  """The variable that tells of a cluster of several processes, or None."""
  for name, needed in _CLUSTERS.items():
    value = environ.get(name)
    if not value or (needed and needed not in environ):
      continue
    if name.endswith(("TASKS", "SIZE")) and int(value) < 2:
      continue
    if name == "TPU_WORKER_HOSTNAMES" and "," not in value:
      continue
    return name
  return None


def _on_a_tpu_vm() -> bool:
  """Whether this is a host of TPUs, which names its slice in its metadata."""
  chips = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
  return chips and importlib.util.find_spec("libtpu") is not None


def start_distributed(
  coordinator: str = "",
  processes: int = 0,
  process: int = -1,
  *,
  heartbeat_seconds: int = 30,
  start_seconds: int = 300,
  joining: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
  """Joins the processes of one run: by arguments, or where a cluster shows.

  `joining` is around it, where there is something to join.

  JAX itself detects SLURM, Cloud TPU, GKE and Open MPI. The coordinator may
  stand in JAX_COORDINATOR_ADDRESS; processes=1 stays alone wherever it is.
  Raises BadConfig where only some of the arguments are given.
  """
  if processes == 1 and process in (-1, 0):
    return
  told = os.environ.get(COORDINATOR, "")
  if told and not coordinator:
    if processes > 0 or process >= 0:
      coordinator = told
    elif not cluster() and not _on_a_tpu_vm():
      raise BadConfig(
        f"{COORDINATOR}={told} says where process 0 is, but nothing says how "
        "many processes there are: add --processes=N --process=I (0 to N-1), "
        f"or run alone with --processes=1 or without {COORDINATOR}"
      )
  given = (bool(coordinator), processes > 0, process >= 0)
  if any(given) and not all(given):
    raise BadConfig(
      "--coordinator=HOST:PORT, --processes=N and --process=I belong together: "
      f"got {coordinator!r}, {processes}, {process}"
    )
  if all(given) and process >= processes:
    raise BadConfig(
      f"--process={process} of --processes={processes}: expected 0 to "
      f"{processes - 1}"
    )
  # It would swallow a signal that comes before anybody asks for it.
  jax.config.update("jax_enable_preemption_service", False)
  limits = dict(
    heartbeat_timeout_seconds=heartbeat_seconds,
    initialization_timeout=start_seconds,
    # One that ends alone waits for the others, who wait for it.
    shutdown_timeout_seconds=heartbeat_seconds,
  )
  where = (coordinator, processes, process) if all(given) else ()
  if where or cluster() or _on_a_tpu_vm():
    with joining():
      jax.distributed.initialize(*where, **limits)


def over_batch(f: Callable, mesh, cut: Sequence[bool]) -> Callable:
  """`f` run on each device's own rows of the batch, its results added up.

  `cut` says which arguments are arrays with a leading batch axis; the others,
  arrays or trees of them, arrive whole.
  The partitioner would add up a loop's carry at each trip; here it is added
  once, at the end. Where the mesh does not cut the batch, `f` itself.
  """
  if mesh.empty or batch_shards(mesh) == 1:
    return f
  axes = tuple(a for a in RULES["B"] if mesh.shape[a] > 1)
  specs = tuple(PartitionSpec(axes) if c else PartitionSpec() for c in cut)

  def local(*args):
    # Marked as differing between devices, a whole argument gets a gradient
    # that is added up once, where the mark is put.
    mark = functools.partial(jax.lax.pcast, axis_name=axes, to="varying")
    args = [
      a if c else jax.tree.map(mark, a) for a, c in zip(args, cut, strict=True)
    ]
    return jax.tree.map(lambda x: jax.lax.psum(x, axes), f(*args))

  def run(*args):
    rows = next(a.shape[0] for a, c in zip(args, cut, strict=True) if c)
    if rows % batch_shards(mesh):
      return f(*args)
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=specs,
      out_specs=PartitionSpec(),
      axis_names=set(axes),
      check_vma=True,
    )(*args)

  return run


def over_heads(f: Callable, q_BTNH, k_BTKH, v_BTKH, segments_BT) -> jax.Array:
  """f(q, k, v, segments) on each device's own rows and heads, (B, T, N, H)."""
  if alone():
    return f(q_BTNH, k_BTKH, v_BTKH, segments_BT)
  mesh = jax.sharding.get_abstract_mesh()
  key = spec("BTKH", k_BTKH.shape, mesh)
  rows = None
  if segments_BT is not None:
    rows = spec("BT", segments_BT.shape, mesh)
  query = spec("BTNH", q_BTNH.shape, mesh)
  return jax.shard_map(
    f,
    mesh=mesh,
    in_specs=(query, key, key, rows),
    out_specs=query,
    check_vma=False,
  )(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def around(step: Callable, stay, travel, *whole):
  """(stay, travel) after the rows of each device have met those of all.

  step(stay, travel, home, *whole) -> (stay, travel): of two pieces of the
  batch, the second's rows being the first's where `home`. stay, travel: trees
  of arrays with a leading batch axis; whole: arrays that all devices hold.
  Each device keeps its piece of `stay` and passes what it has of `travel` to
  the next, until all are home: so no device holds more than two pieces. Where
  the mesh does not cut the batch, one step. Not differentiable by itself.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rows = len(jax.tree.leaves(stay)[0])
  n = 1 if mesh.empty else batch_shards(mesh)
  if n == 1 or rows % n:
    return step(stay, travel, True, *whole)
  axes = tuple(a for a in RULES["B"] if mesh.shape[a] > 1)
  turn = [(i, (i + 1) % n) for i in range(n)]

  def passed_on(travel):
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, turn), travel)

  def local(stay, travel, *whole):
    def meet(both, _):
      stay, travel = both
      return step(stay, passed_on(travel), False, *whole), None

    both = step(stay, travel, True, *whole)
    (stay, travel), _ = jax.lax.scan(meet, both, None, length=n - 1)
    return stay, passed_on(travel)

  pieces = PartitionSpec(axes)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(pieces, pieces, *(PartitionSpec() for _ in whole)),
    out_specs=(pieces, pieces),
    axis_names=set(axes),
    check_vma=True,
  )(stay, travel, *whole)
