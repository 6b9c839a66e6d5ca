"""Connectionist temporal classification is what others compute, and the laws
of blanks, repeats and what is too short."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.readout import Aligned, Readout
from aigc_jax.objectives import ctc
from tests.sweep import slow

B, T, V, N = 4, 9, 5, 4


def aligned(logits_BTV, lengths, blank=0) -> Aligned:
  """Of these logits, by way of the identity."""
  eye = jnp.eye(logits_BTV.shape[-1])
  return Aligned(Readout(logits_BTV, eye), jnp.asarray(lengths), blank)


def some(blank=0):
  """(logits, lengths, batch); a repeat, an odd length, an end of text."""
  draw = np.random.default_rng(0)
  logits = jnp.asarray(3 * draw.normal(size=(B, T, V)), jnp.float32)
  texts = [[1, 2, 2, 3], [4, 4], [1], [3, 2, 4]]
  targets, weights = np.full((B, N + 1), 2), np.zeros((B, N + 1), np.float32)
  for row, text in enumerate(texts):
    own = [*((id + blank) % V for id in text), blank]
    targets[row, : len(own)], weights[row, : len(own)] = own, 1
  batch = dict(targets=jnp.asarray(targets), weights=jnp.asarray(weights))
  return logits, np.array([9, 3, 6, 3], np.int32), batch, texts


def loss(logits, lengths, batch, blank=0):
  return ctc(lambda _: aligned(logits, lengths, blank), batch)


@pytest.mark.slow
@pytest.mark.parametrize("blank", [slow(0), 3])
def test_value_and_gradient_are_those_of_torch(blank):
  torch = pytest.importorskip("torch")
  logits, lengths, batch, texts = some(blank)
  value, ours = jax.value_and_grad(
    lambda x: loss(x, lengths, batch, blank)["loss"].sum
  )(logits)
  x = torch.tensor(np.asarray(logits), requires_grad=True)
  found = torch.nn.functional.ctc_loss(
    torch.log_softmax(x, -1).swapaxes(0, 1),
    torch.tensor([(id + blank) % V for text in texts for id in text]),
    torch.tensor(lengths), torch.tensor([len(text) for text in texts]),
    blank=blank, reduction="sum",
  )  # fmt: skip
  found.backward()
  np.testing.assert_allclose(value, found.item(), rtol=1e-5)
  np.testing.assert_allclose(ours, x.grad.numpy(), atol=1e-5)


@pytest.mark.slow
def test_it_is_the_sum_over_all_alignments():
  logits, *_ = some()
  short = logits[:1, :4]
  logp = np.asarray(jax.nn.log_softmax(short))[0]
  text, total = [1, 1], 0.0
  for path in itertools.product(range(V), repeat=4):
    runs = [id for id, _ in itertools.groupby(path)]
    if [id for id in runs if id] == text:
      total += np.exp(sum(logp[t, id] for t, id in enumerate(path)))
  batch = dict(targets=jnp.array([text]), weights=jnp.ones((1, 2)))
  found = loss(short, [4], batch)["nll"]
  np.testing.assert_allclose(found.sum, -np.log(total), rtol=1e-5)
  assert found.weight == 2


@pytest.mark.slow
def test_what_is_too_short_is_told_and_has_no_part_in_the_loss():
  logits, lengths, batch, _ = some()
  lengths[1] = 2  # of 4 4, which needs a blank between
  lengths[2] = 0
  found = loss(logits, lengths, batch)
  assert found["too_short"].value() == 0.5 and found["loss"].weight == 7
  keep = np.array([0, 3])
  few = loss(
    logits[keep], lengths[keep], {k: x[keep] for k, x in batch.items()}
  )
  np.testing.assert_allclose(found["loss"].sum, few["loss"].sum, rtol=1e-6)
  slope = jax.grad(lambda x: loss(x, lengths, batch)["loss"].sum)(logits)
  assert np.isfinite(slope).all() and not slope[1:3].any()


@pytest.mark.slow
def test_rows_that_pad_a_batch_and_junk_behind_count_nothing():
  logits, lengths, batch, _ = some()
  a = loss(logits, lengths, batch)
  padded = {k: jnp.pad(x, ((0, 2), (0, 3))) for k, x in batch.items()}
  more = jnp.pad(logits, ((0, 2), (0, 5), (0, 0)), constant_values=7.0)
  b = loss(more, np.pad(lengths, (0, 2)), padded)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
