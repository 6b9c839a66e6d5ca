"""Loading never holds much more than what the devices keep."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import files, hf, sharding
from aigc_jax.hf import incoming, outgoing
from aigc_jax.hf.families import write_config
from aigc_jax.hf.kinds import shapes_of
from aigc_jax.hf.llama import LLAMA
from aigc_jax.hf.table import Leaf, leaves
from tests import tiny
from tests.hf.test_golden import abstract
from tests.sweep import slow, sweep

KWARGS = tiny.LLAMA | dict(
  vocab=12_000, layers=24, dim=512, heads=8, kv_heads=1, head_dim=64,
  mlp_dim=2048, position_length=64, tied=True,
)  # fmt: skip
SHARD = 28 << 20

# Reads the folder and prints how many bytes the process held at its peak above
# what it held before and what the parameters take: resident memory, pages of
# mapped files among it. On a CPU the devices' memory is the host's. The peak is
# the kernel's own high-water mark, set back before reading.
CODE = """
import sys, jax
from aigc_jax import hf, sharding
from flax import linen as nn
from aigc_jax.models import decoder
import jax.numpy as jnp

def status(key):
  for line in open("/proc/self/status"):
    if line.startswith(key): return int(line.split()[1]) << 10

found = hf.load(sys.argv[1])
sizes = dict.fromkeys(sharding.AXES, 1) | {sys.argv[2]: -1}
mesh = sharding.make_mesh(**sizes)
dtype = jnp.dtype(sys.argv[3])
model = decoder(**found.kwargs)
boxed = jax.eval_shape(
  model.init, jax.random.key(0), {"tokens": jnp.zeros((1, 1), jnp.int32)}
)["params"]
laid = sharding.of_tree(boxed, mesh)
jax.block_until_ready(jnp.zeros(3) + 1)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
wanted = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nn.unbox(boxed)
)
with jax.set_mesh(mesh):
  params = jax.block_until_ready(hf.read_params(found, wanted, laid))
shards = [s for x in jax.tree.leaves(params) for s in x.addressable_shards]
assert len(shards) == jax.device_count() * len(jax.tree.leaves(params))
print(status("VmHWM") - before - sum(s.data.nbytes for s in shards))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Some 340 MB in float32, in files of at most 64 MB."""
  path = tmp_path_factory.mktemp("large")
  shapes = shapes_of("decoder", KWARGS)
  table = leaves(LLAMA, shapes)
  draw = np.random.default_rng(0)
  arrays = {
    name: draw.random(shape, np.float32) for name, shape in shapes.items()
  }
  files.write_json(path / "config.json", write_config(LLAMA, KWARGS))
  outgoing.write_weights(path, table, arrays, np.dtype(np.float32), SHARD)
  return path, shapes


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", [slow("gpt2"), "llama"])
@pytest.mark.parametrize("axis", sweep(["data", "fsdp", "pipeline"], "fsdp"))
def test_no_array_of_the_host_is_larger_than_a_piece(name, axis, monkeypatch):
  found = hf.load(GOLDEN / name)
  sizes = dict.fromkeys(sharding.AXES, 1) | {axis: 2}
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:2])
  wanted, laid = abstract(found.kwargs, mesh=mesh)
  whole = hf.read_params(found, wanted, laid)
  read, made = Leaf.read, []

  def counted(leaf, *where):
    made.append(read(leaf, *where))
    return made[-1]

  monkeypatch.setattr(Leaf, "read", counted)
  monkeypatch.setattr(incoming, "PIECE", 23)
  with jax.set_mesh(mesh):
    parts = hf.read_params(found, wanted, laid)
  assert max(block.size for block in made) <= 23
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  assert jax.tree.map(lambda x: x.sharding, parts) == laid


def test_a_shard_is_filled_where_it_lies():
  shard = jnp.zeros((3, 500))
  where = shard.unsafe_buffer_pointer()
  at = (np.int32(1), np.int32(400))
  filled = incoming._write(shard, jnp.ones((1, 100)), at)
  assert filled.unsafe_buffer_pointer() == where and shard.is_deleted()
  assert float(filled.sum()) == 100 and float(filled[1, 400:].sum()) == 100


@pytest.mark.slow
@pytest.mark.skipif(
  not os.path.exists("/proc/self/clear_refs"), reason="needs Linux"
)
@pytest.mark.parametrize(
  "devices,axis,dtype",
  [
    (1, "data", "float32"),
    (1, "data", "bfloat16"),
    (4, "fsdp", "float32"),
    (4, "pipeline", "float32"),  # the layers themselves apart
  ],
)
def test_loading_holds_one_tensor_beside_the_devices(
  folder, devices, axis, dtype
):
  path, shapes = folder
  index = json.loads((path / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) > 4
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(path), axis, dtype],
    capture_output=True, text=True, timeout=300, env=os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_PLATFORMS": "cpu",
    },
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  largest = max(
    int(np.prod(leaf.their_shape)) for leaf in leaves(LLAMA, shapes).values()
  )
  limit = 1.3 * 4 * largest + SHARD
  stacked = max(4 * int(np.prod(shape)) for shape in shapes.values())
  print("beside the devices:", int(done.stdout) >> 20, "MiB of", limit / 2**20)
  assert stacked > 1.2 * limit
  assert int(done.stdout) < limit
