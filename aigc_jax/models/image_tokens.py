"""Images as codes of a frozen VQ, told one after another or masked at once.

DALL-E's prior (arXiv:2102.12092), a causal decoder over a label and the codes
of an image, and MaskGIT's (arXiv:2202.04200), an encoder that is asked for the
codes that are hidden from it. Both read one vocabulary: the codes first, then
the labels, one id that says no label, and of an encoder one that hides a code.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.parametrization import Factors
from aigc_jax.layers.readout import Readout, readout_of
from aigc_jax.models.checks import at_least_1
from aigc_jax.models.roles import Part, factors_of_part, parts_of
from aigc_jax.models.vq import Codes

Batch = Mapping[str, jax.Array]
PARTS = ("vq", "prior")
# The kind of the prior by the order in which it tells codes.
ORDERS = {"causal": "decoder", "masked": "encoder"}


@struct.dataclass
class ImageCodes:
  """Codes (B, T) int32 of images, and whether they are told in no order."""

  codes_BT: jax.Array
  masked: bool = struct.field(pytree_node=False)


class ImageTokens(nn.Module):
  """A VQ, which is to be frozen, and a prior over its codes.

  With role "vq": the ImageCodes of "images" (B, Y, X, C). With "prior": a
  Readout of the codes at each place, given "labels" (B,), of which `classes`
  and above are none, and "codes" (B, T); causal, each from those before it, or
  masked, from those that "hidden" (B, T) does not name. Without a role: what
  the prior says of the images' own codes.
  """

  parts: Mapping[str, Part]
  classes: int
  masked: bool

  @property
  def vq(self) -> Codes:
    """The model of the VQ by itself; its variables lie below "vq"."""
    return self.parts["vq"].model

  @property
  def prior(self) -> nn.Module:
    """The model of the prior by itself; its variables lie below "prior"."""
    return self.parts["prior"].model

  @property
  def image(self) -> tuple[int, int, int]:
    return self.vq.image

  @property
  def codes(self) -> int:
    return self.vq.codes

  @property
  def length(self) -> int:
    """How many codes an image has."""
    return self.vq.places[0] * self.vq.places[1]

  @property
  def none(self) -> int:
    """The id that says no label."""
    return self.codes + self.classes

  @property
  def hidden(self) -> int:
    """The id that stands for a code that is hidden."""
    return self.none + 1

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, in the prior."""
    return self.prior.operand_dtype

  def factors(self, path: str, optimizer: str) -> Factors:
    """Those of the part that has the parameter at this path."""
    return factors_of_part(self.parts, path, optimizer)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return self.vq.example() | {
      "labels": jax.ShapeDtypeStruct((1,), jnp.int32),
      "draw": jax.ShapeDtypeStruct((1, 2), jnp.uint32),
    }

  @nn.compact
  def __call__(self, batch: Batch, role: str | None = None):
    vq, prior = (
      self.parts[name].model.clone(parent=self, name=name) for name in PARTS
    )
    if role == "vq":
      return self._coded(vq.encode(batch["images"]))
    if role == "prior":
      return self.told(prior(self.asked(batch)))
    if role is not None:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and an image_tokens has "
        f"{', '.join(PARTS)}: --config.objective.kind=image_tokens"
      )
    coded = self._coded(vq(batch).codes_BT)
    hidden_BT = jnp.ones(coded.codes_BT.shape, bool)
    asked = dict(batch, codes=coded.codes_BT, hidden=hidden_BT)
    return self.told(prior(self.asked(asked)))

  def _coded(self, codes_BT: jax.Array) -> ImageCodes:
    return ImageCodes(jax.lax.stop_gradient(codes_BT), self.masked)

  def label_ids(self, labels_B: jax.Array) -> jax.Array:
    """The ids of labels (B,); from `classes` on they are none."""
    return self.codes + jnp.minimum(labels_B, self.classes)

  def asked(self, batch: Batch) -> dict[str, jax.Array]:
    """What the prior reads: a label, and the codes it is shown."""
    codes_BT, labels_B1 = (
      batch["codes"],
      self.label_ids(batch["labels"])[:, None],
    )
    if not self.masked:
      return {"tokens": jnp.concatenate([labels_B1, codes_BT[:, :-1]], axis=1)}
    shown_BT = jnp.where(batch["hidden"], self.hidden, codes_BT)
    at_BT = jnp.broadcast_to(
      jnp.arange(1, codes_BT.shape[1] + 1, dtype=jnp.int32), codes_BT.shape
    )
    return {
      "tokens": jnp.concatenate([labels_B1, shown_BT], axis=1),
      "at": at_BT,
    }

  def told(self, output) -> Readout:
    """What the prior says of codes alone: nothing else can stand there."""
    readout = readout_of(output)
    bias_V = readout.bias_V
    return readout.replace(
      table_VD=readout.table_VD[: self.codes],
      bias_V=None if bias_V is None else bias_V[: self.codes],
    )


def image_tokens_of(
  models: Mapping[str, Callable],
) -> Callable[..., ImageTokens]:
  """`image_tokens`, of models of these kinds."""

  def image_tokens(
    *, parts: Mapping, classes: int, order: str = "causal"
  ) -> ImageTokens:
    """An ImageTokens from plain values; the keys of `config.model`.

    parts: vq and prior, each a config.model of its own. classes: how many
    labels there are. order: causal, of a prior that is a decoder, or masked, of
    one that is an encoder. Raises BadConfig where they cannot go together.
    """
    at_least_1(classes=classes)
    kind = errors.choose(order, ORDERS, "model.order")
    if sorted(parts) != sorted(PARTS):
      raise errors.BadConfig(
        f"model.parts has {', '.join(parts) or 'nothing'}: expected "
        f"{' and '.join(PARTS)}"
      )
    made = parts_of(parts, models)
    if not isinstance(made["vq"].model, Codes):
      raise errors.BadConfig(
        f"model.parts.vq.kind={parts['vq']['kind']!r} makes no codes of "
        "images: take a vq"
      )
    if parts["prior"]["kind"] != kind:
      raise errors.BadConfig(
        f"model.parts.prior.kind={parts['prior']['kind']!r}: "
        f"model.order={order!r} takes {kind!r}"
      )
    model = ImageTokens(made, classes, order == "masked")
    _check_fits(model, parts["prior"])
    return model

  return image_tokens


def _check_fits(model: ImageTokens, prior: Mapping) -> None:
  """Raises BadConfig for a prior that has not the ids or places it needs."""
  ids = model.none + 1 + model.masked
  if prior["vocab"] != ids:
    hides = " + 1 that hides a code" if model.masked else ""
    raise errors.BadConfig(
      f"model.parts.prior.vocab={prior['vocab']} does not fit the VQ: "
      f"{model.codes} codes + {model.classes} labels + 1 for none{hides}: "
      f"--config.model.parts.prior.vocab={ids}"
    )
  positions = prior.get("position_length")
  learned = prior.get("position", "learned") == "learned"
  length = model.length + model.masked
  if learned and (positions or 0) < length:
    raise errors.BadConfig(
      f"model.parts.prior.position_length={positions}: an image has "
      f"{model.length} codes, and its label goes before them: "
      f"--config.model.parts.prior.position_length={length}"
    )
