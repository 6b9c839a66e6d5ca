"""Images told by texts, and texts by images: recall, and labels without labels.

A model `Embeds` where it puts both on one sphere; near is what belongs
together. Nothing is told in favour of a model where two are equally near, or a
model that says nothing would be right.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn

from aigc_jax import data, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.loss import RAW
from aigc_jax.layers.report import STATS
from aigc_jax.tree import joined

ROWS = 1024  # of a table of similarities at a time
EQUAL = 1e-12  # as near, of similarities up to 1: products in float64 round so


@runtime_checkable
class Embeds(Protocol):
  """A flax module that embeds images and texts.

  text_length: how many tokens of a text it reads at most.
  """

  text_length: int

  def embed_images(self, images_BYXC: jax.Array) -> jax.Array:
    """(B, Z) float32, each of length one."""

  def embed_texts(self, tokens_BT: jax.Array) -> jax.Array:
    """(B, Z) float32, each of length one."""


def check_embeds(model: nn.Module, what: str) -> None:
  """BadConfig unless the model embeds; `what` is what needs it."""
  if not isinstance(model, Embeds):
    raise BadConfig(
      f"{what} compares images and texts, which a model of the kind "
      f"{type(model).__name__} does not embed: leave it out, or take a clip"
    )


def rivals(
  queries_NZ: np.ndarray, keys_MZ: np.ndarray, right_N: Sequence[np.ndarray]
) -> np.ndarray:
  """How many wrong keys are as near to each query as its nearest right one.

  All of length one; right_N: the numbers of the right keys of each query. One
  that is no number is as near as can be.
  """
  found = np.empty(len(queries_NZ), np.int64)
  for start in range(0, len(queries_NZ), ROWS):
    near_NM = queries_NZ[start : start + ROWS] @ keys_MZ.T
    for row, near_M in enumerate(near_NM, start):
      own = np.max(near_M[right_N[row]])
      others = ~(near_M < own - EQUAL)
      others[right_N[row]] = False
      found[row] = np.sum(others)
  return found


def recalls(
  images_NZ: np.ndarray,
  texts_NZ: np.ndarray,
  tokens_NT: np.ndarray,
  at: Sequence[int],
) -> dict[str, float]:
  """Recall at k, of the texts of images and of the images of texts.

  The text of image i is tokens[i]; texts of the same tokens are one text, all
  images of which are right. So the first is a share of the images, the second
  a share of the texts that differ.
  """
  _, first, which = np.unique(
    tokens_NT, axis=0, return_index=True, return_inverse=True
  )
  which = which.reshape(-1)
  texts_UZ = texts_NZ[first]
  of_text = [np.flatnonzero(which == u) for u in range(len(first))]
  ranks = {
    "image_to_text": rivals(images_NZ, texts_UZ, which[:, None]),
    "text_to_image": rivals(texts_UZ, images_NZ, of_text),
  }
  return {
    f"{name}_recall_at_{k}": float(np.mean(rank < k))
    for name, rank in ranks.items()
    for k in at
  }


def class_embeddings(texts_CPZ: np.ndarray) -> np.ndarray:
  """(C, Z): of each class, the mean over its P texts, of length one."""
  mean_CZ = np.mean(texts_CPZ, axis=1)
  length_C1 = np.linalg.norm(mean_CZ, axis=1, keepdims=True)
  return mean_CZ / np.maximum(length_C1, 1e-12)


class _Embedder(abc.ABC):
  """What both evaluators need: embeddings of a held-out set, on the host."""

  def __init__(
    self,
    model: nn.Module,
    eval_set: data.EvalSet,
    mesh: jax.sharding.Mesh,
    *,
    name: str,
    poll: Callable[[], None] | None = None,
    weights: str = RAW,
  ):
    check_embeds(model, f"evaluate.{name}")
    self.eval_set, self.mesh, self.name = eval_set, mesh, name
    self.fingerprint = eval_set.fingerprint
    self._poll = poll or (lambda: None)
    self._average = weights != RAW

    def embed(method: str):
      def run(params, fixed, x):
        variables = {"params": params}
        if fixed is not None:
          variables["params"] = joined(params, fixed.frozen)
          if fixed.stats is not None:
            variables[STATS] = fixed.stats
        return model.apply(variables, x, method=method)

      # Whole on each device, so that each process has all of it.
      return jax.jit(run, out_shardings=sharding.replicated(mesh))

    self._images, self._texts = embed("embed_images"), embed("embed_texts")
    self._whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def __call__(self, step: int, state) -> dict[str, float]:
    """The metrics by their full names."""
    found = self.measure(*state.read(self._average))
    return {f"eval/{self.name}/{key}": value for key, value in found.items()}

  @abc.abstractmethod
  def measure(self, params, fixed=None) -> dict[str, float]:
    """The metrics of these parameters by their own names."""

  def _embedded(self, params, fixed, column: str) -> tuple[np.ndarray, ...]:
    """Of the whole set without its padding, in float64: images, and a column.

    Between them stand the embeddings of the texts where the column is "tokens".
    """
    rows: list[tuple] = []
    with data.batches(
      self.eval_set, self.mesh, 0, self.eval_set.batches
    ) as batches:
      for _, batch in batches:
        self._poll()
        found = [self._images(params, fixed, batch["images"])]
        if column == "tokens":
          found.append(self._texts(params, fixed, batch["tokens"]))
        rows.append(
          [np.asarray(x) for x in (*found, self._whole(batch[column]))]
        )
    parts = [np.concatenate(part) for part in zip(*rows, strict=True)]
    *embedded, told = (part[: len(self.eval_set)] for part in parts)
    return *(x.astype(np.float64) for x in embedded), told


class Recall(_Embedder):
  """evaluate(step, state) -> how often the right one is among the k nearest."""

  def __init__(self, *args, at: Sequence[int], **keys):
    super().__init__(*args, **keys)
    self.at = tuple(at)

  def measure(self, params, fixed=None) -> dict[str, float]:
    """The metrics of these parameters, see `recalls`."""
    with jax.set_mesh(self.mesh):
      found = self._embedded(params, fixed, "tokens")
    return recalls(*found, self.at)


class ZeroShot(_Embedder):
  """evaluate(step, state) -> how often an image is nearest to its label's text.

  tokens_CPT: P texts of each of C labels. The images have "labels".
  """

  def __init__(self, *args, tokens_CPT: np.ndarray, **keys):
    super().__init__(*args, **keys)
    self.tokens_CPT = tokens_CPT

  def measure(self, params, fixed=None) -> dict[str, float]:
    """ "top1", "top5" of more labels than five, and what "chance" is."""
    C, P, T = self.tokens_CPT.shape
    flat, rows = self.tokens_CPT.reshape(C * P, T), self.eval_set.batch
    lacking = -len(flat) % rows
    padded = np.pad(flat, ((0, lacking), (0, 0)), mode="edge")
    with jax.set_mesh(self.mesh):
      texts = [
        np.asarray(self._texts(params, fixed, some), np.float64)
        for some in padded.reshape(-1, rows, T)
      ]
      images_NZ, labels_N = self._embedded(params, fixed, "labels")
    texts_CZ = class_embeddings(
      np.concatenate(texts)[: C * P].reshape(C, P, -1)
    )
    rank_N = rivals(images_NZ, texts_CZ, labels_N[:, None])
    found = {"top1": float(np.mean(rank_N < 1)), "chance": 1 / C}
    return found | ({"top5": float(np.mean(rank_N < 5))} if C > 5 else {})
