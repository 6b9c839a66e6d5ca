"""No fault outlives a test; a compilation is paid for once."""

import jax
import pytest

from aigc_jax.trainer import faults


@pytest.fixture(autouse=True)
def no_faults(tmp_path):
  yield
  faults.enable(tmp_path, environ={})


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
  """The folder of a compilation cache, for this and other processes."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  before = {
    name: getattr(jax.config, name)
    for name in (
      "jax_compilation_cache_dir",
      "jax_persistent_cache_min_compile_time_secs",
    )
  }
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield folder
  for name, value in before.items():
    jax.config.update(name, value)
