"""The command for minutes on a card, rehearsed where there is none."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from experiments.speed.on_gpu import kinds, part, table

ROOT = Path(__file__).parents[1]
# Of the interface of nanoGPT's model.py, the least that its training needs.
PEER = """
import dataclasses, torch
from torch import nn

@dataclasses.dataclass
class GPTConfig:
  block_size: int
  vocab_size: int
  n_layer: int
  n_head: int
  n_embd: int
  dropout: float
  bias: bool

class GPT(nn.Module):
  def __init__(self, config):
    super().__init__()
    self.table = nn.Embedding(config.vocab_size, config.n_embd)

  def forward(self, ids, targets):
    logits = self.table(ids) @ self.table.weight.T
    return logits, nn.functional.cross_entropy(
      logits.flatten(0, 1), targets.flatten())

  def configure_optimizers(self, decay, rate, betas, device):
    print("as it prints")
    return torch.optim.AdamW(self.parameters(), rate, betas, weight_decay=decay)
"""


def test_kernels_are_told_apart_by_their_names():
  names = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "attention",
    "nvjet_tst_128x256_64x4_2x1_v_bz_TNT": "product",
    "gemm_fusion_dot_12": "product",
    "MemcpyD2D": "copy",
    "input_reduce_fusion_7": "reduction",
    "loop_convert_fusion": "elementwise",
    "wrapped_transpose": "transpose",
    "void cub::DeviceRadixSortOnesweepKernel": "sort",
    "what is it": "other",
  }
  assert {name: kinds.kind_of(name) for name in names} == names


def test_shares_of_the_time_add_up():
  found = kinds.shares([("gemm", 3e6), ("loop_add", 1e6), ("gemm", 4e6)])
  assert found["milliseconds"] == 8
  assert found["by kind"] == {"product": 7 / 8, "elementwise": 1 / 8}
  assert found["largest"][0]["calls"] == 2


def test_what_a_part_said_is_on_disk_at_once(tmp_path):
  call = part.Call(tmp_path / "x.json", True, 10, None)
  call.say("first", {"rate": float("nan")})
  call.say("second", [1])
  found = json.loads((tmp_path / "x.json").read_text())
  assert found == {"first": {"rate": "nan"}, "second": [1]}
  assert "FAILED" in table.table({"numerics": {"x": {"ok": False}}})


@pytest.mark.slow
def test_the_command_is_rehearsed_from_end_to_end(tmp_path):
  pytest.importorskip("torch", reason="needs the extra [parity]: torch")
  pytest.importorskip("transformers", reason="needs the extra [parity]")
  (tmp_path / "model.py").write_text(PEER)
  out = tmp_path / "found.json"
  done = subprocess.run(
    ["bash", ROOT / "experiments/speed/on_gpu.sh", "--rehearse",
     f"--out={out}", f"--nanogpt={tmp_path}", "--limit=1200"],
    env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True, capture_output=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
  found = json.loads(out.read_text())
  assert set(found) == set(part.NAMES)
  for name, value in found["numerics"].items():
    assert not isinstance(value, dict) or value.get("ok", True), (name, value)
  assert "ms" in found["steps"]["tiny"]
  assert "runs on NVIDIA" in found["steps"]["tiny, refused"]["failed"]
  assert found["nanogpt"]["nanoGPT, batch 2"]["tokens/s"] > 0
  assert (
    found["decoding"]["rows equal to those of transformers in float32"] == 1
  )
  assert found["repeat"]["killed = twin"]["ok"]
  assert found["starts"]["cold"]["seconds"] > 0
