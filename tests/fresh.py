"""Parameters for a test, as a model begins but for the numbers it draws.

Random numbers by JAX are compiled for every shape, which takes longer than the
rest of a tiny model: here NumPy draws them.
"""

from unittest import mock

import jax
import numpy as np
from flax import linen as nn


def variables(model: nn.Module, *example, **how):
  """{"params": ..., ...} of `model.init`, without their boxes.

  The layers of a stack begin alike. Shapes in `example` may stand for arrays.
  """
  random = np.random.default_rng(0)

  def draw(key, lower, upper, shape, dtype):
    del key
    return np.clip(random.normal(size=shape), lower, upper).astype(dtype)

  def init():
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), example)
    return nn.unbox(model.init(jax.random.key(0), *zeros, **how))

  with mock.patch.object(jax.random, "truncated_normal", draw):
    return jax.jit(init)()
