"""Loading never holds much more than what the devices keep."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from aigc_jax.hf import outgoing
from aigc_jax.hf.families import write_config
from aigc_jax.hf.incoming import shapes_of
from aigc_jax.hf.llama import LLAMA
from aigc_jax.hf.table import leaves
from tests import tiny

KWARGS = tiny.LLAMA | dict(
  vocab=8000, layers=8, dim=768, heads=6, kv_heads=6, head_dim=128,
  mlp_dim=3072, position_length=64,
)  # fmt: skip
SHARD = 64 << 20

# Reads the folder and prints (the peak above what was there before and what
# the parameters take) in bytes. A reader at work keeps the peak from being
# that of an earlier moment: the kernel's own high-water mark is used.
CODE = """
import sys, resource, jax, numpy as np
from aigc_jax import hf, sharding, tree
from flax import linen as nn
from aigc_jax.models import decoder
import jax.numpy as jnp

def status(key):
  for line in open("/proc/self/status"):
    if line.startswith(key): return int(line.split()[1]) << 10

found = hf.load(sys.argv[1])
mesh = sharding.make_mesh(
  data=1, fsdp=-1, expert=1, tensor=1, sequence=1, pipeline=1
)
model = decoder(**found.kwargs)
boxed = jax.eval_shape(
  model.init, jax.random.key(0), {"tokens": jnp.zeros((1, 1), jnp.int32)}
)["params"]
laid = sharding.of_tree(boxed, mesh)
jax.block_until_ready(jnp.zeros(3) + 1)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
params = jax.block_until_ready(hf.read_params(found, nn.unbox(boxed), laid))
print(status("VmHWM") - before - tree.nbytes(params))
print(len({x.sharding for x in jax.tree.leaves(params)}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Some 340 MB in float32, in files of at most 64 MB."""
  path = tmp_path_factory.mktemp("large")
  shapes = shapes_of(KWARGS)
  table = leaves(LLAMA, shapes)
  draw = np.random.default_rng(0)
  arrays = {
    name: draw.random(shape, np.float32) for name, shape in shapes.items()
  }
  outgoing.write_json(path / "config.json", write_config(LLAMA, KWARGS))
  outgoing.write_weights(path, table, arrays, np.dtype(np.float32), SHARD)
  return path, shapes


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.skipif(
  not os.path.exists("/proc/self/clear_refs"), reason="needs Linux"
)
def test_loading_holds_one_tensor_beside_the_devices(folder, devices):
  path, shapes = folder
  index = json.loads((path / "model.safetensors.index.json").read_text())
  assert len(set(index["weight_map"].values())) > 4
  assert index["metadata"]["total_size"] > 300e6
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(path)],
    capture_output=True, text=True, timeout=300, env=os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_PLATFORMS": "cpu",
    },
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  largest = max(4 * int(np.prod(shape)) for shape in shapes.values())
  print("beside the devices:", int(done.stdout) >> 20, "MiB; largest leaf",
        largest >> 20)  # fmt: skip
  assert int(done.stdout) < 1.3 * largest + SHARD
