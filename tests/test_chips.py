"""Peaks are those of the data sheets, and unknown is unknown."""

import jax
import pytest

from aigc_jax import chips


def test_the_device_that_runs_the_tests_on_a_cpu_is_unknown():
  cpu = jax.devices("cpu")[0]
  assert chips.find(cpu.device_kind) is None
  assert chips.mfu(1e12, cpu.device_kind, 1) is None


@pytest.mark.parametrize(
  "kind", ["NVIDIA H100 NVL", "NVIDIA H200 MIG 1g.18gb", "TPU v9", "", "h200"]
)
def test_a_kind_that_only_resembles_a_known_one_is_unknown(kind):
  assert chips.find(kind) is None


def test_mfu_is_a_fraction_of_all_devices():
  assert chips.mfu(8 * 459e12 / 2, "TPU v5p", 8) == pytest.approx(0.5)
  # Two devices of TPU7x are one chip of 2307 TFLOP/s.
  assert chips.mfu(2307e12, "TPU7x", 2) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_figures_are_of_the_right_size(kind):
  """Guards against a wrong unit: tera for giga, bits for bytes, sparsity."""
  chip = chips.find(kind)
  assert 1e14 <= chip.bf16 <= 3e15
  assert chip.fp32 is None or 1 / 40 < chip.fp32 / chip.bf16 <= 0.51
  assert 16e9 <= chip.memory <= 300e9
  assert 3e11 <= chip.bandwidth <= 8e12
  # FLOPs per byte at which memory stops being the limit.
  assert 100 < chip.bf16 / chip.bandwidth < 600
  assert chip.interconnect is None or 2e11 <= chip.interconnect <= 9e11
