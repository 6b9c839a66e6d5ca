"""Images of captions that a frozen text tower reads, as in latent diffusion.

arXiv:2112.10752, arXiv:2307.01952: the tower was trained before, with images or
without, and a denoiser reads its features of every token by cross attention.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.parametrization import Factors
from aigc_jax.models.roles import Part, check_told, factors_of_part, parts_of

Batch = Mapping[str, jax.Array]
PARTS = ("text", "denoiser")


@runtime_checkable
class ReadsTexts(Protocol):
  """A flax module that has features of the tokens of texts.

  text_length: tokens of a text at most. text_dim: numbers of a feature.
  """

  text_length: int
  text_dim: int

  def read_texts(self, tokens_BT: jax.Array) -> jax.Array:
    """(B, T, D), of each token."""


class Prompted(nn.Module):
  """A text tower, which is to be frozen, and a denoiser told its features.

  With role "text": the features (B, S, D) of captions "tokens" (B, S). With
  "denoiser": what that predicts of "images" at "time", given both. Without a
  role, the latter by the former.
  """

  parts: Mapping[str, Part]

  gradual = True  # noise becomes an image step by step
  roles = PARTS

  def setup(self):
    self.text, self.denoiser = (self.parts[n].model.clone() for n in PARTS)

  def __call__(self, batch: Batch, role: str | None = None):
    if role == "text":
      return self._read(batch["tokens"])
    if role == "denoiser":
      return self.denoiser(batch)
    if role is not None:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and a prompted has "
        f"{', '.join(self.roles)}: --config.objective.kind=flow"
      )
    if self.is_initializing():  # all of the tower's model, as a run of it has
      example = self.parts["text"].model.example()
      self.text({k: jnp.zeros(x.shape, x.dtype) for k, x in example.items()})
    return self.denoiser(dict(batch, text=self._read(batch["tokens"])))

  def _read(self, tokens_BS: jax.Array) -> jax.Array:
    # An id below 0 says that there is no caption; the denoiser knows that.
    x_BSD = self.text.read_texts(jnp.maximum(tokens_BS, 0))
    return jax.lax.stop_gradient(x_BSD)

  def draw(
    self, noise: jax.Array, time_B: jax.Array, given: jax.Array
  ) -> jax.Array:
    """What the denoiser predicts of captions (B, S); see models/dit.py."""
    return self.denoiser.draw(noise, time_B, given, self._read(given))

  @property
  def _told(self) -> nn.Module:
    return self.parts["denoiser"].model

  @property
  def image(self) -> tuple[int, int, int]:
    return self._told.image

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of the noise that an image begins as."""
    return self._told.noise

  @property
  def classes(self) -> int:
    return 0

  @property
  def text_length(self) -> int:
    return self._told.text_length

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, in the denoiser."""
    return self._told.operand_dtype

  def factors(self, path: str, optimizer: str) -> Factors:
    """Those of the part that has the parameter at this path."""
    return factors_of_part(self.parts, path, optimizer)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    found = self._told.example()
    return {name: x for name, x in found.items() if name != "text"}


def prompted_of(models: Mapping[str, Callable]) -> Callable[..., Prompted]:
  """`prompted`, of models of these kinds."""

  def prompted(
    *,
    parts: Mapping,
    vocab: int,
    text_length: int,
    text_end: int,
    classes: int = 0,
  ) -> Prompted:
    """A Prompted from plain values; the keys of `config.model`.

    parts: text and denoiser, each a config.model of its own, the denoiser with
    text_layers=0. vocab, text_length, text_end, classes: those of the denoiser,
    for the data. Raises BadConfig where they cannot go together.
    """
    made = parts_of(parts, models, PARTS)
    _check(made, parts)
    told = dict(
      classes=classes, vocab=vocab, text_length=text_length, text_end=text_end
    )
    check_told(parts, "denoiser", told)
    return Prompted(made)

  return prompted


def _check(made: Mapping[str, Part], parts: Mapping) -> None:
  """Raises BadConfig for parts that do not fit each other."""
  text, denoiser = (made[name].model for name in PARTS)
  if not isinstance(text, ReadsTexts):
    raise errors.BadConfig(
      f"model.parts.text.kind={parts['text']['kind']!r} has no features of "
      "texts: take a clip"
    )
  if not getattr(denoiser, "features", 0):
    raise errors.BadConfig(
      f"model.parts.denoiser.kind={parts['denoiser']['kind']!r} reads no "
      "features of captions: take a dit or a unet, and "
      "--config.model.parts.denoiser.text_layers=0"
    )
  if denoiser.features != text.text_dim:
    raise errors.BadConfig(
      f"model.parts.denoiser.text_dim={denoiser.features}, and the features of "
      f"model.parts.text have {text.text_dim} numbers: "
      f"--config.model.parts.denoiser.text_dim={text.text_dim}"
    )
  if denoiser.text_length > text.text_length:
    raise errors.BadConfig(
      f"model.parts.denoiser.text_length={denoiser.text_length}, and "
      f"model.parts.text reads {text.text_length} tokens at most: lower that, "
      f"model.text_length and data.length to {text.text_length}"
    )
  most = parts["text"]["vocab"]
  if parts["denoiser"]["vocab"] > most:
    raise errors.BadConfig(
      f"model.parts.denoiser.vocab={parts['denoiser']['vocab']}, and "
      f"model.parts.text has {most} ids: give both that, and model.vocab too"
    )
