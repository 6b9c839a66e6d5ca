"""What folders have to know of each kind of model.

A kind that is not in KINDS is one with no more to say: its keywords decide what
it is, but for those that change how it is computed.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.hf.settings import FREE
from aigc_jax.hf.settings import canonical as decoder_canonical
from aigc_jax.layers.mel import HOP, RATE
from aigc_jax.layers.readout import Readout
from aigc_jax.layers.report import STATS
from aigc_jax.models import MODELS, two_widths
from aigc_jax.models.decoder import resolved
from aigc_jax.signature import keys_of

LENGTH = 128  # tokens that two models are compared on, at most


def _plain(kwargs: Mapping) -> dict:
  return {key: value for key, value in kwargs.items() if key not in FREE}


def _as_they_are(kwargs: Mapping, length: int) -> dict:
  return dict(kwargs)


@dataclasses.dataclass(frozen=True)
class Kind:
  """canonical(kwargs): what of them decides the function, in one spelling.

  settled(kwargs, length): the same for an export, `length` being what the model
  was trained to read. probe(kwargs, random): a batch that shows differences of
  two models. writes: whether it writes text, and so has a
  generation_config.json.
  """

  probe: Callable[[Mapping, np.random.Generator], dict[str, np.ndarray]]
  canonical: Callable[[Mapping], dict] = _plain
  settled: Callable[[Mapping, int], dict] = _as_they_are
  writes: bool = False


def _text(kwargs: Mapping, random: np.random.Generator) -> dict:
  """Tokens of one row, as many as the model reads."""
  limit = kwargs.get("position_length") or LENGTH
  if kwargs.get("position", "learned") != "learned":
    limit = LENGTH
  shape = (1, min(LENGTH, limit))
  tokens = random.integers(0, kwargs["vocab"], shape)
  return {"tokens": tokens.astype(np.int32)}


def _padded_text(kwargs: Mapping, random: np.random.Generator) -> dict:
  """Two texts and some padding, where they can be told apart."""
  batch = _text(kwargs, random)
  at = np.arange(batch["tokens"].shape[1])[None]
  real = at < -(-at.shape[1] * 3 // 4)
  batch["segments"] = real.astype(np.int32)
  if kwargs["types"]:
    second = (at >= at.shape[1] // 2) & real & (kwargs["types"] > 1)
    batch["types"] = second.astype(np.int32)
  return batch


def _decoder_settled(kwargs: Mapping, length: int) -> dict:
  head_dim = kwargs["head_dim"] or kwargs["dim"] // kwargs["heads"]
  kwargs = dict(kwargs, head_dim=head_dim)
  if kwargs["position"] != "learned":
    kwargs["position_length"] = max(kwargs["position_length"] or 0, length)
  return kwargs


def _encoder_canonical(kwargs: Mapping) -> dict:
  known = _plain(kwargs)  # of before a key was there, or in part
  if "dim" in known:
    known["mlp_dim"] = known.get("mlp_dim") or 4 * known["dim"]
  if "norm_eps" in known:
    known["norm_eps"] = float(known["norm_eps"])
  return known


def _pair(kwargs: Mapping, random: np.random.Generator) -> dict:
  """A source with some padding, and a target."""
  source, target = random.integers(0, kwargs["vocab"], (2, 1, LENGTH))
  real = np.arange(LENGTH)[None] < LENGTH * 3 // 4
  return {
    "encoder_tokens": source.astype(np.int32),
    "encoder_segments": real.astype(np.int32),
    "tokens": target.astype(np.int32),
  }


def _encoder_decoder_canonical(kwargs: Mapping) -> dict:
  """Neither how fresh weights are drawn nor what targets are written after."""
  known = _plain(kwargs)
  for key in ("embed_std", "start_token"):
    del known[key]
  names = ("dim", "heads", "head_dim", "mlp_dim", "gated")
  known |= two_widths(**{name: known[name] for name in names})
  scale = known["attention_scale"] or known["head_dim"] ** -0.5
  if known["position"] != "relative":
    known |= dict(relative_buckets=None, relative_distance=None)
  return known | dict(
    attention_scale=float(f"{scale:.9g}"), norm_eps=float(known["norm_eps"])
  )


def _images(kwargs: Mapping, random: np.random.Generator) -> dict:
  """Two images of noise."""
  size = kwargs["image_size"]
  shape = (2, size, size, kwargs["channels"])
  return {"images": random.normal(size=shape).astype(np.float32)}


def _vit_canonical(kwargs: Mapping) -> dict:
  known = _encoder_canonical(kwargs)
  if known.get("position") != "rotary":
    known.pop("rotary_base", None)
  return known


def _captioned(kwargs: Mapping, random: np.random.Generator) -> dict:
  """Images of noise, and texts of which one ends early."""
  batch = _images(kwargs, random)
  shape = (len(batch["images"]), kwargs["text_length"])
  tokens = random.integers(0, kwargs["vocab"], shape).astype(np.int32)
  if kwargs["text_end"] is not None:
    tokens[:, -1] = tokens[0, shape[1] // 2] = kwargs["text_end"]
  return batch | {"tokens": tokens}


# What parameters begin with, and the most that one may become.
_CLIP_FREE = ("scale", "most_scale")


def _clip_canonical(kwargs: Mapping) -> dict:
  known = {k: v for k, v in _plain(kwargs).items() if k not in _CLIP_FREE}
  for tower in ("image", "text"):
    if f"{tower}_dim" in known:
      key = f"{tower}_mlp_dim"
      known[key] = known.get(key) or 4 * known[f"{tower}_dim"]
  if "norm_eps" in known:
    known["norm_eps"] = float(known["norm_eps"])
  if "bias" in known:
    known["bias"] = known["bias"] is not None
  return known


# How it is trained, and the size of the images, which shapes nothing.
_RESNET_FREE = ("norm_momentum", "zero_init_residual", "image_size")


def _resnet_canonical(kwargs: Mapping) -> dict:
  known = {k: v for k, v in _plain(kwargs).items() if k not in _RESNET_FREE}
  lists = [key for key in ("blocks", "widths") if key in known]
  return known | {key: tuple(known[key]) for key in lists}


def _drawn_images(kwargs: Mapping, random: np.random.Generator) -> dict:
  """An image of noise, and a key for its code."""
  found = _images(kwargs, random)["images"][:1]
  return {"images": found, "draw": np.array([[1, 2]], np.uint32)}


def _vae_canonical(kwargs: Mapping) -> dict:
  """Of codes that have places the size of images shapes nothing."""
  known = _plain(kwargs)
  lists = [key for key in ("widths", "attention") if key in known]
  known |= {key: tuple(known[key]) for key in lists}
  if known.get("places") and "image_size" in known:
    size, widths = known.pop("image_size"), known.get("widths", ())
    rows = [size >> i for i in range(len(widths))]
    known["attention"] = tuple(n in known["attention"] for n in rows)
  if not known.get("blocks"):
    known.pop("groups", None)
  return known


# How running means move a codebook; and what follows from the levels of a grid.
_VQ_FREE = ("decay", "revive")
_BOOK = ("codes", "dim", "cosine")


def _vq_canonical(kwargs: Mapping) -> dict:
  """As of a vae whose code has places."""
  known = _vae_canonical(dict(kwargs) | dict(places=True))
  known["levels"] = tuple(known["levels"])
  left = {"places", *_VQ_FREE}
  if known["quantizer"] == "fsq":
    left |= set(_BOOK)
  return {key: value for key, value in known.items() if key not in left}


def _sound(kwargs: Mapping, random: np.random.Generator) -> dict:
  """Noise of half the time there is, and a text."""
  samples = min(round(kwargs["seconds"] * RATE), RATE) // HOP * HOP
  length = min(LENGTH, kwargs["position_length"])
  noise = random.integers(-(1 << 14), 1 << 14, (1, samples))
  tokens = random.integers(0, kwargs["vocab"], (1, length))
  return {
    "audio": noise.astype(np.int16),
    "audio_lengths": np.array([samples // 2 + 1], np.int32),
    "tokens": tokens.astype(np.int32),
  }


def _whisper_canonical(kwargs: Mapping) -> dict:
  """Neither how fresh weights are drawn nor what texts are written after."""
  known = {
    k: v
    for k, v in _plain(kwargs).items()
    if k not in ("embed_std", "start_token")
  }
  if "dim" in known:
    known["mlp_dim"] = known.get("mlp_dim") or 4 * known["dim"]
  if "seconds" in known:
    known["seconds"] = float(known["seconds"])
  return known


KINDS = {
  "clip": Kind(_captioned, _clip_canonical),
  "decoder": Kind(_text, decoder_canonical, _decoder_settled, writes=True),
  "encoder": Kind(_padded_text, _encoder_canonical),
  "encoder_decoder": Kind(_pair, _encoder_decoder_canonical, writes=True),
  "resnet": Kind(_images, _resnet_canonical),
  "vae": Kind(_drawn_images, _vae_canonical),
  "vit": Kind(_images, _vit_canonical),
  "vq": Kind(_images, _vq_canonical),
  "whisper": Kind(_sound, _whisper_canonical, writes=True),
}


def canonical(kind: str, kwargs: Mapping) -> dict:
  """What of a model's keywords decides its function, in one spelling.

  A keyword that is left out is what it is by default: a config of before it was
  there says the same as one of after.
  """
  kwargs = {**defaults(kind), **kwargs}
  return KINDS[kind].canonical(kwargs) if kind in KINDS else _plain(kwargs)


def defaults(kind: str) -> dict:
  """The keywords that a model of the kind may be made without."""
  keywords = keys_of(MODELS[kind]).items()
  return {k: p.default for k, p in keywords if p.default is not p.empty}


def known(kind: str, kwargs: Mapping) -> dict:
  """All keywords of a model of the kind, multipliers as they come out."""
  found = defaults(kind) | dict(kwargs)
  return resolved(found) if kind == "decoder" else found


def shapes_of(kind: str, kwargs: Mapping) -> dict[str, tuple[int, ...]]:
  """{path: shape} of a model's parameters and stats; nothing is computed."""
  model = MODELS[kind](**kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  flat = tree.flat(joined(nn.unbox(dict(boxed))))
  return {path: x.shape for path, x in flat.items()}


def joined(variables: Mapping) -> dict:
  """The parameters, with what no gradient moves beside them under STATS."""
  stats = {STATS: variables[STATS]} if variables.get(STATS) else {}
  return dict(variables["params"]) | stats


def parted(params: Mapping) -> dict:
  """{collection: ...} of what was `joined`."""
  own = {key: x for key, x in params.items() if key != STATS}
  return {"params": own} | ({STATS: params[STATS]} if STATS in params else {})


def outputs(kind: str, kwargs: Mapping, params, batch: Mapping) -> list:
  """All that a model says of a batch, logits among it: float32, or codes.

  params: `joined`. In float32 with plain products, whatever else it computes
  in.
  """
  exact = {"dtype": "float32"}
  if "products" in kwargs:
    exact["products"] = "plain"
  model = MODELS[kind](**dict(kwargs) | exact)

  @jax.jit
  def run(params, batch):
    found = model.apply(parted(params), batch)
    return jax.tree.leaves(
      jax.tree.map(_said, found, is_leaf=lambda x: isinstance(x, Readout))
    )

  with jax.default_matmul_precision("highest"):
    return [_wide(x) for x in run(params, dict(batch))]


def _wide(x) -> np.ndarray:
  """In float32; whole numbers, such as codes, stay such."""
  x = np.asarray(x)
  return x if x.dtype.kind in "iub" else x.astype(np.float32)


def _said(x):
  return x.logits() if isinstance(x, Readout) else jnp.asarray(x)
