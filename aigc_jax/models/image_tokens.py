"""Images as codes of a frozen VQ, told one after another or masked at once.

DALL-E's prior (arXiv:2102.12092), a causal decoder over a caption or a label
and the codes of an image, and MaskGIT's (arXiv:2202.04200), an encoder that is
asked for the codes that are hidden from it. Both read one vocabulary: the codes
first, then the labels or the tokens of text, one id that says no label and no
text, and of an encoder one that hides a code.
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
from aigc_jax.models.condition import until_end
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


@struct.dataclass
class Heard:
  """What is said of captions from their second token on.

  readout: of S - 1 places. real_BS: which of these a caption has, (B, S - 1).
  """

  readout: Readout
  real_BS: jax.Array


class ImageTokens(nn.Module):
  """A VQ, which is to be frozen, and a prior over its codes.

  With role "vq": the ImageCodes of "images" (B, Y, X, C). With "prior": a
  Readout of the codes at each place, given "labels" (B,), of which `classes`
  and above are none, or "tokens" (B, S) of a caption, and "codes" (B, T);
  causal, each from those before it, or masked, from those that "hidden" (B, T)
  does not name. With "text", of a causal prior that is told captions: a pair of
  that and the captions as they are Heard. Without a role: what the prior says
  of the images' own codes.

  words: ids of captions, which end with `text_end` and have `text_length`
  tokens; 0 where it is told labels.
  """

  parts: Mapping[str, Part]
  classes: int
  masked: bool
  words: int = 0
  text_length: int = 0
  text_end: int = 0

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
    """The id that says no label, and stands where no token of a text is."""
    return self.codes + self.classes + self.words

  @property
  def leading(self) -> int:
    """How many ids come before the codes."""
    return self.text_length or 1

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
    told = {"labels": (1,)}
    if self.words:
      told = {"tokens": (1, self.text_length)}
    shapes = {k: jax.ShapeDtypeStruct(v, jnp.int32) for k, v in told.items()}
    draw = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    return self.vq.example() | shapes | {"draw": draw}

  @nn.compact
  def __call__(self, batch: Batch, role: str | None = None):
    vq, prior = (
      self.parts[name].model.clone(parent=self, name=name) for name in PARTS
    )
    if role == "vq":
      return self._coded(vq.encode(batch["images"]))
    if role in ("prior", "text"):
      told = self._told_in(batch)
      output = prior(self.asked(told, batch["codes"], batch.get("hidden")))
      of_codes = self.told(output)
      return (
        of_codes if role == "prior" else (of_codes, self.heard(output, told))
      )
    if role is not None:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and an image_tokens has "
        f"{', '.join(PARTS)}: --config.objective.kind=image_tokens"
      )
    coded = self._coded(vq(batch).codes_BT)
    hidden_BT = jnp.ones(coded.codes_BT.shape, bool)
    asked = self.asked(self._told_in(batch), coded.codes_BT, hidden_BT)
    return self.told(prior(asked))

  def _told_in(self, batch: Batch) -> jax.Array:
    """Labels (B,), or captions (B, S)."""
    return batch["tokens" if self.words else "labels"]

  def _coded(self, codes_BT: jax.Array) -> ImageCodes:
    return ImageCodes(jax.lax.stop_gradient(codes_BT), self.masked)

  def lead(self, told: jax.Array) -> jax.Array:
    """(B, P) ids of labels (B,), from `classes` on none, or of captions (B, S).

    What stands behind the end of a caption, and ids below 0, are no text.
    """
    if told.ndim == 1:
      return self.codes + jnp.minimum(told, self.classes)[:, None]
    ids_BS = jnp.where(self._real(told), self.codes + told, self.none)
    short = self.text_length - ids_BS.shape[1]
    return jnp.pad(ids_BS, ((0, 0), (0, short)), constant_values=self.none)

  def asked(
    self, told: jax.Array, codes_BT: jax.Array, hidden_BT: jax.Array | None
  ) -> dict[str, jax.Array]:
    """What the prior reads: labels or captions, and the codes it is shown."""
    lead_BP = self.lead(told)
    if not self.masked:
      ids = [lead_BP, codes_BT[:, :-1]]
      return {"tokens": jnp.concatenate(ids, axis=1)}
    shown_BT = jnp.where(hidden_BT, self.hidden, codes_BT)
    P = lead_BP.shape[1]
    at_T = jnp.arange(P, P + codes_BT.shape[1], dtype=jnp.int32)
    return {
      "tokens": jnp.concatenate([lead_BP, shown_BT], axis=1),
      "at": jnp.broadcast_to(at_T, codes_BT.shape),
    }

  def told(self, output) -> Readout:
    """What the prior says of codes alone: nothing else can stand there.

    Of those that come at the end, where it says something of a caption too.
    """
    readout = readout_of(output)
    x_BTD = readout.features_BTD[:, -self.length :]
    return _rows(readout.replace(features_BTD=x_BTD), 0, self.codes)

  def heard(self, output, told_BS: jax.Array) -> Heard:
    """What a causal prior says of captions (B, S)."""
    readout = readout_of(output)
    x_BSD = readout.features_BTD[:, : told_BS.shape[1] - 1]
    readout = readout.replace(features_BTD=x_BSD)
    words = _rows(readout, self.codes, self.codes + self.words)
    return Heard(words, self._real(told_BS)[:, 1:])

  def _real(self, told_BS: jax.Array) -> jax.Array:
    """(B, S) bool: which places of captions have a token of text."""
    return until_end(told_BS, self.text_end) & (told_BS >= 0)


def _rows(readout: Readout, first: int, stop: int) -> Readout:
  """What it says of the ids from the first to before the last."""
  bias_V = readout.bias_V
  return readout.replace(
    table_VD=readout.table_VD[first:stop],
    bias_V=None if bias_V is None else bias_V[first:stop],
  )


def image_tokens_of(
  models: Mapping[str, Callable],
) -> Callable[..., ImageTokens]:
  """`image_tokens`, of models of these kinds."""

  def image_tokens(
    *,
    parts: Mapping,
    classes: int,
    order: str = "causal",
    vocab: int | None = None,
    text_length: int | None = None,
    text_end: int | None = None,
  ) -> ImageTokens:
    """An ImageTokens from plain values; the keys of `config.model`.

    parts: vq and prior, each a config.model of its own. classes: how many
    labels there are, or 0 where it is told captions: of `vocab` ids,
    `text_length` tokens, ended by the id `text_end`. order: causal, of a prior
    that is a decoder, or masked, of one that is an encoder. Raises BadConfig
    where they cannot go together.
    """
    captions = _captions(classes, vocab, text_length, text_end)
    kind = errors.choose(order, ORDERS, "model.order")
    made = parts_of(parts, models, PARTS)
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
    model = ImageTokens(made, classes, order == "masked", *captions)
    _check_fits(model, parts["prior"])
    return model

  return image_tokens


def _captions(
  classes: int, vocab: int | None, length: int | None, end: int | None
) -> tuple[int, ...]:
  """(words, text_length, text_end), or nothing where it is told labels."""
  keys = dict(vocab=vocab, text_length=length, text_end=end)
  given = [name for name, value in keys.items() if value is not None]
  if not given:
    at_least_1(classes=classes)
    return ()
  if len(given) < len(keys) or classes:
    values = ", ".join(f"model.{k}={v}" for k, v in keys.items())
    raise errors.BadConfig(
      f"model.classes={classes}, {values}: a model is told labels, or "
      "captions: classes=0 and all of vocab, text_length and text_end"
    )
  at_least_1(vocab=vocab, text_length=length)
  if not 0 <= end < vocab:
    raise errors.BadConfig(
      f"model.text_end={end}: expected the id that ends a text, below "
      f"model.vocab={vocab}"
    )
  return vocab, length, end


def _check_fits(model: ImageTokens, prior: Mapping) -> None:
  """Raises BadConfig for a prior that has not the ids or places it needs."""
  ids = model.none + 1 + model.masked
  if prior["vocab"] != ids:
    told = (
      f"{model.words} of text" if model.words else f"{model.classes} labels"
    )
    hides = " + 1 that hides a code" if model.masked else ""
    raise errors.BadConfig(
      f"model.parts.prior.vocab={prior['vocab']} does not fit the VQ: "
      f"{model.codes} codes + {told} + 1 for none{hides}: "
      f"--config.model.parts.prior.vocab={ids}"
    )
  positions = prior.get("position_length")
  learned = prior.get("position", "learned") == "learned"
  length = model.leading + model.length - 1 + model.masked
  if learned and (positions or 0) < length:
    lead = "its caption goes" if model.words else "its label goes"
    raise errors.BadConfig(
      f"model.parts.prior.position_length={positions}: an image has "
      f"{model.length} codes, and {lead} before them: "
      f"--config.model.parts.prior.position_length={length}"
    )
