"""One table from letters to mesh axes gives every layout."""

import dataclasses

import jax
import pytest
from jax._src import sharding_impls
from jax.sharding import PartitionSpec as P

from aigc_jax import errors, sharding

ONE = dict(data=1, fsdp=1, expert=1, tensor=1, sequence=1, pipeline=1)


def mesh(**sizes):
  return sharding.make_mesh(**ONE | sizes)


@pytest.mark.parametrize(
  ("letters", "shape", "expected"),
  [
    ("BTD", (8, 6, 4), P(("data", "fsdp"), None, None)),
    ("BTNH", (8, 6, 4, 2), P(("data", "fsdp"), None, "tensor", None)),
    ("DNH", (8, 4, 2), P("fsdp", "tensor", None)),
    ("NHD", (4, 2, 8), P("tensor", None, "fsdp")),
    ("DF", (8, 6), P("fsdp", "tensor")),
    ("FD", (6, 8), P("tensor", "fsdp")),
    ("VD", (10, 8), P("tensor", "fsdp")),
    ("LDF", (3, 8, 6), P(None, "fsdp", "tensor")),
    ("BTV", (8, 6, 10), P(("data", "fsdp"), None, "tensor")),
  ],
)
def test_the_table_gives_megatron_with_fsdp(letters, shape, expected):
  assert (
    sharding.spec(letters, shape, mesh(data=2, fsdp=2, tensor=2)) == expected
  )


def test_a_dimension_that_does_not_divide_is_left_whole(caplog):
  m = mesh(fsdp=4, tensor=2)
  assert sharding.spec("DF", (6, 7), m) == P(None, None)
  assert sharding.spec("DNH", (8, 3, 2), m) == P("fsdp", None, None)


def test_positions_take_the_sequence_axis():
  m = mesh(fsdp=4, sequence=2)
  assert sharding.spec("BTD", (8, 6, 4), m) == P("fsdp", "sequence", None)


def test_none_takes_the_rest():
  assert mesh(fsdp=None, tensor=2).shape["fsdp"] == jax.device_count() // 2


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    (dict(fsdp=3), "8 device"),
    (dict(fsdp=16), "does not fit"),
    (dict(fsdp=2), "does not fit"),
    (dict(fsdp=None, data=None), "only one"),
    (dict(fsdp=None, tensor=3), "does not fit"),
    (dict(fsdp=0), "mesh.fsdp=0"),
    (dict(fsdp=-2), "mesh.fsdp=-2"),
    (dict(fsdp="4"), "mesh.fsdp='4'"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, words):
  with pytest.raises(errors.BadConfig, match=words):
    mesh(**sizes)


@pytest.mark.parametrize(
  ("environ", "expected"),
  [
    ({}, None),
    # An allocation, or the shell of one: nothing was started beside this.
    ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, None),
    ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1",
      "SLURM_STEP_NODELIST": "a"}, None),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "a,b"},
     "SLURM_STEP_NUM_TASKS"),
    ({"JAX_COORDINATOR_ADDRESS": "a:1"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1;tcp"},
     "OMPI_COMM_WORLD_SIZE"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
  ],
)  # fmt: skip
def test_a_cluster_shows_in_the_environment(environ, expected):
  assert sharding.cluster(environ) == expected


def test_flags_of_a_cluster_belong_together():
  with pytest.raises(errors.BadConfig, match="belong together"):
    sharding.start_distributed("127.0.0.1:1234", 2, -1)
  with pytest.raises(errors.BadConfig, match="--process=2 .*expected 0 to 1"):
    sharding.start_distributed("127.0.0.1:1234", 2, 2)


@pytest.fixture
def joined(monkeypatch):
  """What JAX was asked to join, instead of joining."""
  found = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *args, **_: found.append(args)
  )
  monkeypatch.setattr(jax.config, "update", lambda *_: None)
  return found


def test_a_coordinator_alone_is_told_what_is_missing(monkeypatch, joined):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1234")
  with pytest.raises(errors.BadConfig, match="--processes=N --process=I"):
    sharding.start_distributed()
  sharding.start_distributed(processes=1)
  assert joined == []
  sharding.start_distributed(processes=2, process=1)
  assert joined == [("127.0.0.1:1234", 2, 1)]


def test_a_command_inside_an_allocation_waits_for_nobody(monkeypatch, joined):
  monkeypatch.setenv("SLURM_JOB_ID", "7")
  monkeypatch.setenv("SLURM_NTASKS", "2")
  sharding.start_distributed()
  assert joined == []
  monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b")
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  sharding.start_distributed(processes=1, process=0)
  assert joined == []
  sharding.start_distributed()
  assert joined == [()]


@dataclasses.dataclass(frozen=True)
class Chip:
  """A described chip of a TPU v6e, as far as a mesh looks at it."""

  id: int
  coords: tuple[int, int, int]
  device_kind: str = "TPU v6 lite"
  platform: str = "tpu"
  core_on_chip: int = 0
  process_index: int = 0
  slice_index: int = 0


CHIPS = [Chip(8 * y + x, (x, y, 0)) for y in range(8) for x in range(8)]


@pytest.mark.parametrize(
  "sizes", [dict(fsdp=16, tensor=4), dict(fsdp=64), dict(data=2, fsdp=16,
  tensor=2), dict(fsdp=8, tensor=8)],
)  # fmt: skip
def test_a_torus_of_8_x_8_takes_sizes_that_are_none_of_its_axes(
  sizes, monkeypatch
):
  for module in (sharding, sharding_impls):  # a mesh is of real devices
    monkeypatch.setattr(module, "Mesh", lambda laid, *_, **__: laid)
  shape = dict.fromkeys(sharding.AXES, 1) | sizes
  laid = sharding.make_mesh(**shape, devices=CHIPS)
  assert laid.shape == tuple(shape.values())
  assert {chip.id for chip in laid.flat} == set(range(64))


def test_sizes_that_no_torus_takes_are_told_with_those_it_does():
  odd = [Chip(i, (i % 6, i // 6, 0)) for i in range(36)]
  with pytest.raises(errors.BadConfig, match="fsdp=18 x tensor=2.*of 6x6"):
    sharding._split_torus((1, 18, 1, 2, 1, 1), odd[:35] + odd[:1])
