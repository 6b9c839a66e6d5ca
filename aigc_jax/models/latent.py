"""Latent diffusion: noise becomes codes of a frozen VAE, and those an image.

arXiv:2112.10752. The codes are made in the step, of the images of the batch,
and divided by their deviation, which the first step measures.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.noise import normal
from aigc_jax.layers.parametrization import Factors
from aigc_jax.layers.report import STATS, report
from aigc_jax.metrics import Mean
from aigc_jax.models.roles import Part, check_told, factors_of_part, parts_of

Batch = Mapping[str, jax.Array]
PARTS = ("vae", "denoiser")


@runtime_checkable
class Latents(Protocol):
  """A flax module that makes Gaussian codes of images, and images of codes.

  image: (Y, X, C). noise: the shape of a code; with places (rows, columns,
  channels).
  """

  image: tuple[int, int, int]

  @property
  def noise(self) -> tuple[int, ...]: ...

  def moments(self, images_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation (B, *noise)."""

  def decode(self, code: jax.Array) -> jax.Array:
    """Images (B, Y, X, C) float32."""


@struct.dataclass
class Measured:
  """A report: mean and mean square of all numbers of the codes of a batch."""

  mean: Mean
  square: Mean

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The scale by the first batch that there was; it stays."""
    var = self.square.value() - self.mean.value() ** 2
    fresh = (old["measured"] == 0) & (var > 0)
    scale = jax.lax.rsqrt(jnp.where(var > 0, var, 1.0))
    return {
      "scale": jnp.where(fresh, scale, old["scale"]),
      "measured": jnp.where(fresh, 1.0, old["measured"]),
    }


class Latent(nn.Module):
  """A VAE, which is to be frozen, and a denoiser of its scaled codes.

  With role "latents": the codes (B, *noise) of "images" (B, Y, X, C), drawn by
  the rows' keys in "draw" where `sample`, else their means, less `shift` and
  then times `scale`; None measures it. With "denoiser": what that predicts of
  such codes as "images". Without a role, both.
  """

  parts: Mapping[str, Part]
  scale: float | None
  sample: bool
  shift: float = 0.0

  gradual = True  # noise becomes a code step by step
  roles = ("latents", "denoiser")

  def setup(self):
    self.vae, self.denoiser = (self.parts[n].model.clone() for n in PARTS)
    if self.scale is None:
      own = lambda name, start: self.variable(  # noqa: E731
        STATS, name, sharding.named(start, "."), (1,)
      )
      self.found = own("scale", jnp.ones)
      self.measured = own("measured", jnp.zeros)

  def __call__(self, batch: Batch, role: str | None = None):
    if role == "latents":
      return self._latents(batch)
    if role == "denoiser":
      return self.denoiser(batch)
    if role is not None:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and a latent has "
        f"{', '.join(self.roles)}: --config.objective.kind=flow"
      )
    if self.is_initializing():  # all of the VAE, its way back too
      self.vae(batch)
    codes = self._latents(batch)
    told = self.denoiser(dict(batch, images=codes))
    return {"latents": codes, "denoiser": told}

  def _latents(self, batch: Batch) -> jax.Array:
    mean, deviation = self.vae.moments(batch["images"])
    codes = mean
    if self.sample:
      noise = normal(batch["draw"], "code", mean.shape[1:])
      codes = mean + deviation * noise
    codes = jax.lax.stop_gradient(codes)
    if self.scale is None:
      weights_B = batch.get("weights", jnp.ones(len(codes)))
      real_B = (weights_B > 0).astype(jnp.float32)
      each = [
        jnp.mean(x.reshape(len(x), -1), axis=-1) for x in (codes, codes**2)
      ]
      report(self, "latents", Measured(*(Mean.of(x, real_B) for x in each)))
    codes = (codes - self.shift) * self._scaled()
    return sharding.constrain_rows(codes)

  def _scaled(self) -> jax.Array | float:
    return self.found.value if self.scale is None else self.scale

  def draw(
    self, noise: jax.Array, time_B: jax.Array, given: jax.Array
  ) -> jax.Array:
    """What the denoiser predicts of noisy codes; see models/dit.py."""
    return self.denoiser.draw(noise, time_B, given)

  def finish(self, codes: jax.Array) -> jax.Array:
    """Images (B, Y, X, C) of scaled codes."""
    return self.vae.decode(codes / self._scaled() + self.shift)

  @property
  def image(self) -> tuple[int, int, int]:
    return self.parts["vae"].model.image

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of the noise that a code begins as."""
    return self.parts["denoiser"].model.noise

  @property
  def classes(self) -> int:
    return self.parts["denoiser"].model.classes

  @property
  def text_length(self) -> int:
    return self.parts["denoiser"].model.text_length

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, in the denoiser."""
    return self.parts["denoiser"].model.operand_dtype

  def factors(self, path: str, optimizer: str) -> Factors:
    """Those of the part that has the parameter at this path."""
    return factors_of_part(self.parts, path, optimizer)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    found = {name: self.parts[name].model.example() for name in PARTS}
    return found["denoiser"] | found["vae"]


def latent_of(models: Mapping[str, Callable]) -> Callable[..., Latent]:
  """`latent`, of models of these kinds."""

  def latent(
    *,
    parts: Mapping,
    classes: int,
    scale: float | None = None,
    shift: float = 0.0,
    sample: bool = True,
    vocab: int | None = None,
    text_length: int | None = None,
    text_end: int | None = None,
  ) -> Latent:
    """A Latent from plain values; the keys of `config.model`.

    parts: vae and denoiser, each a config.model of its own. shift: what is
    subtracted from codes, before scale: what they are multiplied by, None for
    one over their deviation in the first batch. sample: whether codes are
    drawn, or the means of what they may be. classes, vocab, text_length,
    text_end: those of the denoiser, for the data. Raises BadConfig where they
    cannot go together.
    """
    if scale is not None and not scale > 0:
      raise errors.BadConfig(
        f"model.scale={scale}: expected above 0, or None to measure it"
      )
    made = parts_of(parts, models, PARTS)
    _check(made, parts)
    told = dict(
      classes=classes, vocab=vocab, text_length=text_length, text_end=text_end
    )
    check_told(parts, "denoiser", told)
    return Latent(made, scale, sample, shift)

  return latent


def _check(made: Mapping[str, Part], parts: Mapping) -> None:
  """Raises BadConfig for parts that do not fit each other."""
  vae, denoiser = (made[name].model for name in PARTS)
  kinds = {name: parts[name]["kind"] for name in PARTS}
  if not isinstance(vae, Latents) or len(vae.noise) != len(vae.image):
    raise errors.BadConfig(
      f"model.parts.vae.kind={kinds['vae']!r} makes no codes that have places: "
      "take a vae, and --config.model.parts.vae.places=True"
    )
  if not getattr(denoiser, "gradual", False) or isinstance(denoiser, Latent):
    raise errors.BadConfig(
      f"model.parts.denoiser.kind={kinds['denoiser']!r} takes no noise away "
      "step by step: take a dit or a unet"
    )
  if denoiser.noise != vae.noise:
    given, wanted = (
      "x".join(map(str, model.noise)) for model in (denoiser, vae)
    )
    raise errors.BadConfig(
      f"model.parts.denoiser takes codes of {given} (rows, columns, channels), "
      f"and model.parts.vae makes {wanted}: "
      f"--config.model.parts.denoiser.image_size={vae.noise[0]} "
      f"--config.model.parts.denoiser.channels={vae.noise[-1]}"
    )
