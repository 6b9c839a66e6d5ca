"""Eight virtual devices, tiny models with all-different sizes."""

import importlib.metadata
import importlib.util
import os

import pytest

# Programs here are tiny and run once: the time is in compiling them.
FLAGS = {
  "--xla_force_host_platform_device_count": "8",
  "--xla_backend_optimization_level": "0",
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Halves the time to compile; newer versions abort on a flag they dropped.
  FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
  flags = os.environ.get("XLA_FLAGS", "")
  if flag not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def pytest_configure(config):
  """What AIGC_JAX_REQUIRE names must be there: its tests may not be skipped."""
  required = os.environ.get("AIGC_JAX_REQUIRE", "").split()
  missing = [name for name in required if not importlib.util.find_spec(name)]
  if missing:
    raise pytest.UsageError(f"required and not installed: {', '.join(missing)}")
