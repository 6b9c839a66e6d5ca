"""Distillation: a student says what a teacher says (arXiv:1503.02531).

With masked tokens and the cosine of hidden states it is DistilBERT's
(arXiv:1910.01108); with next tokens, of one decoder by another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.readout import Readout, readout_of
from aigc_jax.metrics import Mean
from aigc_jax.objectives.masked import masked
from aigc_jax.objectives.tokens import Batch, tokens


def distill(
  predict: Callable,
  batch: Batch,
  *,
  temperature: float = 2.0,
  soft: float = 5.0,
  hard: float = 2.0,
  cosine: float = 0.0,
  chunk: int | None = None,
) -> dict[str, Mean]:
  """The student's loss beside what its teacher, a frozen part, predicts.

  loss = soft * "soft" + hard * "nll" + cosine * "cosine"

  "soft": temperature**2 times the divergence KL(teacher || student) of the two
  distributions at that temperature, in nats per target. "nll": of the targets
  themselves, of masked tokens where the batch has "at", of next tokens
  otherwise. "cosine": 1 - the cosine of the two last hidden states, a row's
  mean over its positions; a row counts by its targets. chunk: how many
  targets' logits exist at once.

  Raises BadConfig for parts that are not student and teacher, for two
  vocabularies, and for hidden states that are not there or not alike.
  """
  if not temperature > 0:
    raise errors.BadConfig(
      f"objective.temperature={temperature}: expected a positive number"
    )
  student = predict(batch, "student")
  teacher = jax.lax.stop_gradient(predict(batch, "teacher"))
  if "at" in batch:
    means = masked(lambda batch: student, batch, chunk=chunk)
  else:
    means = tokens(lambda batch: student, batch, z_loss=0.0, chunk=chunk)
  weight = means["nll"].weight
  means["soft"] = Mean(
    _divergence(
      readout_of(student), readout_of(teacher), batch["weights"],
      temperature, chunk,
    ),
    weight,
  )  # fmt: skip
  # The loss of these objectives is nll, and has its gradient.
  total = soft * means["soft"].sum + hard * means["loss"].sum
  if cosine:
    means["cosine"] = Mean(_turned(student, teacher, batch), weight)
    total = total + cosine * means["cosine"].sum
  return means | {"loss": Mean(total, weight)}


def _divergence(
  student: Readout, teacher: Readout, w_BT, temperature: float, chunk
) -> jax.Array:
  """temperature**2 * KL(teacher || student), summed under the weights."""
  if student.table_VD.shape[0] != teacher.table_VD.shape[0]:
    raise errors.BadConfig(
      f"the student predicts {student.table_VD.shape[0]} ids and the teacher "
      f"{teacher.table_VD.shape[0]}: give both one vocab"
    )
  w = w_BT.astype(jnp.float32).reshape(1, -1)
  rows = min(chunk or w.size, w.size)
  lacking = -w.size % rows

  def pieces(x):
    x = x.reshape(-1, *x.shape[2:])
    x = jnp.pad(x, [(0, lacking)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, 1, rows, *x.shape[1:])

  # Logits are made again in the backward pass: they are the largest arrays.
  @jax.checkpoint
  def piece(total, part):
    x, t, w = part
    p, q = (
      jax.nn.log_softmax(r.replace(features_BTD=f).logits() / temperature)
      for r, f in ((student, x), (teacher, t))
    )
    found = jnp.sum(jnp.exp(q) * (q - p), axis=-1)
    return total + jnp.sum(jnp.where(w == 0, 0.0, found * w)), None

  parts = (
    pieces(student.features_BTD),
    pieces(teacher.features_BTD),
    pieces(w.reshape(w_BT.shape)),
  )
  total, _ = jax.lax.scan(piece, jnp.float32(0), parts)
  return temperature**2 * total


def _turned(student, teacher, batch: Batch) -> jax.Array:
  """1 - cosine of hidden states, each row's mean times its targets' weight."""
  a, b = (getattr(x, "hidden_BTD", None) for x in (student, teacher))
  if a is None or b is None or a.shape != b.shape:
    raise errors.BadConfig(
      "objective.cosine compares hidden states, which two encoders of one dim "
      "have: set --config.objective.cosine=0.0"
    )
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
  apart_BT = 1 - jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-8)
  real_BT = jnp.ones(apart_BT.shape)
  if "segments" in batch:
    real_BT = (batch["segments"] > 0).astype(jnp.float32)
  mean_B = jnp.sum(apart_BT * real_BT, 1) / jnp.maximum(real_BT.sum(1), 1)
  return jnp.sum(mean_B * batch["weights"].astype(jnp.float32).sum(1))
