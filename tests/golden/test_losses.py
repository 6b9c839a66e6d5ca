"""What a family computes is what it computed."""

import numpy as np
import pytest

from tests.golden import losses, written
from tests.sweep import sweep

# Of a model that is there; dalle and latent begin from one that was trained.
ALIKE = {
  "gpt3", "mistral", "qwen", "roberta", "distilbert", "digits", "spoken_digits",
  "dalle", "latent",
}  # fmt: skip


@pytest.mark.parametrize("dtype", sweep(list(losses.TOLERANCE), "float32"))
@pytest.mark.parametrize("name", sweep(list(losses.SMALL), "gpt2:small"))
def test_three_steps_have_the_losses_and_gradients_that_they_had(name, dtype):
  found, before = losses.numbers(name, dtype), losses.golden()[name][dtype]
  for key in losses.NAMES:
    np.testing.assert_allclose(
      found[key], before[key], rtol=losses.TOLERANCE[dtype], err_msg=key
    )


def test_every_family_of_presets_has_golden_losses():
  families = {name.partition(":")[0] for name in losses.SMALL}
  assert families | ALIKE == set(written.FAMILIES)
