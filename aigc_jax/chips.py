"""Peaks of known devices by device kind; unknown is unknown.

Dense figures of the makers' data sheets, never with sparsity. All are for one
JAX device, which is a whole chip except on TPU7x, where it is half a chip.
"""

from dataclasses import dataclass

GB = 10**9
GIB = 2**30
TERA = 10**12


@dataclass(frozen=True)
class Chip:
  """What one device can do at best.

  bf16, fp32: FLOP/s, dense; bf16 products are summed in float32, and fp32 is
  None where no figure is published. memory: bytes. bandwidth: bytes/s of that
  memory. interconnect: bytes/s to other chips, one direction, all links
  together (makers often quote both directions: half of that); None without.
  """

  name: str
  bf16: float
  fp32: float | None
  memory: float
  bandwidth: float
  interconnect: float | None


# https://cloud.google.com/tpu/docs/v4
TPU_V4 = Chip("TPU v4", 275e12, None, 32 * GIB, 1200 * GB, 300 * GB)
# https://cloud.google.com/tpu/docs/v5e
TPU_V5E = Chip("TPU v5e", 197e12, None, 16 * GIB, 800 * GB, 200 * GB)
# https://cloud.google.com/tpu/docs/v5p
TPU_V5P = Chip("TPU v5p", 459e12, None, 95 * GIB, 2765 * GB, 600 * GB)
# https://cloud.google.com/tpu/docs/v6e
TPU_V6E = Chip("TPU v6e", 918e12, None, 32 * GIB, 1600 * GB, 400 * GB)
# https://cloud.google.com/tpu/docs/tpu7x, one of a chip's two TensorCores,
# each of which JAX sees as a device
TPU_7X = Chip("TPU7x", 2307e12 / 2, None, 96 * GIB, 3690 * GB, 300 * GB)

# https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/
#   nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
A100_40 = Chip("A100 40GB", 312e12, 19.5e12, 40 * GB, 1555 * GB, 300 * GB)
A100_80 = Chip("A100 80GB SXM", 312e12, 19.5e12, 80 * GB, 2039 * GB, 300 * GB)
A100_80_PCIE = Chip(
  "A100 80GB PCIe", 312e12, 19.5e12, 80 * GB, 1935 * GB, 300 * GB
)
# https://www.nvidia.com/en-us/data-center/h100/ (sparse figures, halved)
H100_SXM = Chip("H100 SXM", 989.4e12, 67e12, 80 * GB, 3350 * GB, 450 * GB)
# https://www.nvidia.com/content/dam/en-zz/Solutions/gtcs22/data-center/h100/
#   PB-11133-001_v01.pdf
H100_PCIE = Chip("H100 PCIe", 756e12, 51e12, 80 * GB, 2000 * GB, 300 * GB)
# https://www.nvidia.com/en-us/data-center/h200/
H200 = Chip("H200 SXM", 989.4e12, 67e12, 141 * GB, 4800 * GB, 450 * GB)
# https://resources.nvidia.com/en-us-blackwell-architecture (HGX B200)
B200 = Chip("B200", 2250e12, 80e12, 180 * GB, 8 * TERA, 900 * GB)
# https://www.nvidia.com/en-us/data-center/gb200-nvl72/ (a GPU of the two)
GB200 = Chip("GB200", 2500e12, 80e12, 186 * GB, 8 * TERA, 900 * GB)
# https://www.nvidia.com/en-us/data-center/l4/
L4 = Chip("L4", 121e12, 30.3e12, 24 * GB, 300 * GB, None)
# https://images.nvidia.com/aem-dam/Solutions/geforce/ada/
#   nvidia-ada-gpu-architecture.pdf
RTX_4090 = Chip("RTX 4090", 165.2e12, 82.6e12, 24 * GB, 1008 * GB, None)

# jax.Device.device_kind -> chip
CHIPS: dict[str, Chip] = {
  "TPU v4": TPU_V4,
  "TPU v5 lite": TPU_V5E,
  "TPU v5e": TPU_V5E,
  "TPU v5": TPU_V5P,
  "TPU v5p": TPU_V5P,
  "TPU v6 lite": TPU_V6E,
  "TPU v6e": TPU_V6E,
  "TPU7x": TPU_7X,
  "NVIDIA A100-SXM4-40GB": A100_40,
  "NVIDIA A100-PCIE-40GB": A100_40,
  "NVIDIA A100-SXM4-80GB": A100_80,
  "NVIDIA A100 80GB PCIe": A100_80_PCIE,
  "NVIDIA H100 80GB HBM3": H100_SXM,
  "NVIDIA H100 PCIe": H100_PCIE,
  "NVIDIA H200": H200,
  "NVIDIA B200": B200,
  "NVIDIA GB200": GB200,
  "NVIDIA L4": L4,
  "NVIDIA GeForce RTX 4090": RTX_4090,
}


def find(device_kind: str) -> Chip | None:
  """The chip that JAX calls `device_kind`, or None.

  Only exact names count: an "H100 NVL" or a MIG slice is not an H100 SXM, and
  no figure is better than a wrong one.
  """
  return CHIPS.get(device_kind)


def mfu(
  flops_per_second: float, device_kind: str, devices: int
) -> float | None:
  """The fraction of the devices' dense bf16 peak in use; None if unknown.

  Against bf16 whatever the dtype, as the literature counts it.
  """
  chip = find(device_kind)
  if chip is None:
    return None
  return flops_per_second / (devices * chip.bf16)


def peak_flops(mesh) -> float | None:
  """FLOP/s of all devices of a mesh at their dense bf16 peak, or None."""
  chip = find(mesh.devices.flat[0].device_kind)
  return None if chip is None else mesh.size * chip.bf16
