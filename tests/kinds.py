"""A tiny model of each kind, its batch and its objective, for laws of all.

A new kind is a line in KINDS; its sizes are all different, so that a transposed
axis cannot hide.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.run.build import scorer
from aigc_jax.trainer.state import Fixed
from tests import diffusion, fresh, sound, tiny


class Kind(NamedTuple):
  """model: keywords, kind among them. batch(B, T, seed): a batch of it.

  objective: keywords, kind among them. letters: axes of the batch's entries
  that are not "BT". frozen: parts that nothing trains. smooth: whether a little
  less precision changes the loss but a little.
  """

  model: Mapping
  batch: Callable[..., dict]
  objective: Mapping
  letters: Mapping[str, str] = {}
  frozen: tuple[str, ...] = ()
  smooth: bool = True


def masked_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """Rows of two texts, some shorter than others, a few of their tokens asked.

  Places behind the last one asked have weight 0 and the position 0.
  """
  draw = np.random.default_rng(seed)
  length_B1 = draw.integers(T // 2 + 1, T + 1, (B, 1))
  at = np.arange(T)
  real = at < length_B1
  # The first position is asked nowhere else, so that an empty place is seen.
  asked = np.stack(
    [draw.choice(T // 2, 2, replace=False) + 1 for _ in range(B)]
  )
  at_BM = np.concatenate([np.sort(asked, -1), np.zeros((B, 1), int)], -1)
  found = dict(
    tokens=draw.integers(0, 37, (B, T)),
    types=(at >= length_B1 // 2) & real,
    segments=real,
    at=at_BM,
    targets=draw.integers(0, 37, at_BM.shape),
    follows=draw.integers(0, 2, (B,)),
  )
  batch = {name: jnp.asarray(x, jnp.int32) for name, x in found.items()}
  weights = jnp.asarray(at_BM > 0, jnp.float32)
  # One row is asked less than the others.
  return batch | {"weights": weights.at[0, 1].set(0)}


def captioned_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """Images and texts of different lengths, each with an end; one is padding."""
  draw = np.random.default_rng(seed)
  length_B1 = draw.integers(T // 2, T, (B, 1))
  at = np.arange(T)
  tokens = np.where(at < length_B1, draw.integers(0, 36, (B, T)), 36)
  weights = np.ones(B)
  weights[-1] = B < 3
  return dict(
    images=jnp.asarray(draw.normal(size=(B, 12, 12, 3)), jnp.float32),
    tokens=jnp.asarray(tokens, jnp.int32),
    weights=jnp.asarray(weights, jnp.float32),
  )


CLIP = dict(
  kind="clip", image_size=12, channels=3, patch=4, image_layers=2, image_dim=24,
  image_heads=3, image_mlp_dim=44, vocab=37, text_length=19, text_layers=4,
  text_dim=32, text_heads=8, text_mlp_dim=52, embed_dim=20,
  activation="quick_gelu", norm_eps=1e-5, image_pool="token",
  image_norm_before=True, patch_bias=False, image_projection=True,
  projection_bias=False, text_causal=True, text_end=36, scale=9.0,
  most_scale=100.0, bias=None, init_std=None, dropout=0.0, dtype="float32",
  remat="none", unroll=1, kernel="xla",
)  # fmt: skip
SIGLIP = CLIP | dict(
  activation="gelu_tanh", image_pool="attention", image_norm_before=False,
  patch_bias=True, image_projection=False, projection_bias=True, embed_dim=24,
  text_causal=False, text_end=None, most_scale=None, bias=-2.0,
)  # fmt: skip
CAPTIONED = dict(images="BYXC", weights="B")
ENCODER = dict(
  kind="encoder", vocab=37, layers=3, dim=24, heads=4, mlp_dim=44,
  position_length=19, position_start=2, kernel="xla",
)  # fmt: skip


def drawn_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """Images with labels and keys; how long a text would be says nothing."""
  return diffusion.batch_of(B, seed)


def noised_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """The same for what is told a time, which an objective puts there."""
  return drawn_batch(B, T, seed) | dict(time=jnp.full(B, 0.5))


def described_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """Captions in place of labels, of different lengths, each with its end."""
  found = noised_batch(B, T, seed)
  del found["labels"]
  return found | dict(tokens=captioned_batch(B, T, seed)["tokens"])


def captions_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """The same without a time."""
  found = described_batch(B, T, seed)
  del found["time"]
  return found


def told_batch(B: int, T: int, seed: int = 0) -> dict[str, jax.Array]:
  """Captions, and a row that has none."""
  found = described_batch(B, T, seed)
  return found | dict(tokens=found["tokens"].at[0].set(-1))


READ = dict(
  classes=0, vocab=37, text_length=19, text_layers=2, text_dim=20,
  text_heads=5, text_mlp_dim=28, text_end=36,
)  # fmt: skip
TOLD = dict(classes=0, vocab=37, text_length=19, text_end=36)
FEATURES = TOLD | dict(
  text_layers=0, text_dim=32, text_heads=None, text_mlp_dim=None
)
DIT = dict(diffusion.DIT, kind="dit")
UNET = dict(
  kind="unet", classes=5, image_size=6, channels=1, widths=(8, 12), blocks=1,
  attention=(3,), groups=4, kernel="xla",
)  # fmt: skip
VAE = dict(
  kind="vae", image_size=6, channels=1, widths=(10,), latent=2, places=True,
)  # fmt: skip
BLOCKS = dict(blocks=1, groups=4, kernel="xla")
DENOISER = DIT | dict(image_size=3, channels=2, patch=1)
VQ = dict(
  kind="vq", image_size=6, channels=1, widths=(10,), codes=12, dim=4,
)  # fmt: skip
DECODER = dict(tiny.GPT2, kind="decoder", vocab=18, position_length=9)
PRIOR = ENCODER | dict(vocab=19, position_length=11)
PIXELS = diffusion.LETTERS
NOISED = PIXELS | dict(time="B")
TOKENS = dict(kind="image_tokens", label_dropout=0.3, chunk=7)
PLACES = dict(at="B.", targets="B.", weights="B.", follows="B")
KINDS = {
  "decoder": Kind(
    dict(kind="decoder", **tiny.LLAMA),
    tiny.ragged_batch,
    dict(kind="tokens", z_loss=1e-3, chunk=16),
  ),
  "encoder": Kind(
    ENCODER, masked_batch, dict(kind="masked", chunk=5), PLACES
  ),
  "encoder of pairs": Kind(
    ENCODER | dict(pooler=True, next_sentence=True), masked_batch,
    dict(kind="masked", next_sentence=True), PLACES,
  ),
  "clip": Kind(CLIP, captioned_batch, dict(kind="contrastive"), CAPTIONED),
  "siglip": Kind(
    SIGLIP, captioned_batch, dict(kind="contrastive", loss="sigmoid"), CAPTIONED
  ),
  "dit of captions": Kind(
    DIT | READ, described_batch, dict(kind="flow"), NOISED
  ),
  "prompted": Kind(
    dict(
      kind="prompted", **TOLD, parts=dict(text=CLIP, denoiser=DIT | FEATURES),
    ),
    told_batch, dict(kind="flow"), NOISED, frozen=("text",),
  ),
  "unet": Kind(
    UNET, noised_batch, dict(kind="flow", prediction="epsilon"), NOISED
  ),
  "unet of captions": Kind(
    UNET | READ
    | dict(head_dim=4, scale_shift=True, resample="block", sigma=True),
    described_batch, dict(kind="flow", prediction="v", variance=1e-3), NOISED,
  ),
  "latent": Kind(
    dict(
      kind="latent", classes=5, parts=dict(vae=VAE, denoiser=DENOISER),
    ),
    noised_batch, dict(kind="flow"), NOISED, frozen=("vae",),
  ),
  "vae of blocks": Kind(
    VAE | BLOCKS | dict(widths=(8, 12), attention=(3,), scales=False),
    drawn_batch, dict(kind="elbo", likelihood="laplace", log_scale=0.0), PIXELS,
  ),
  "vq of blocks": Kind(
    VQ | BLOCKS | dict(widths=(8, 12), quantizer="gradient"), drawn_batch,
    dict(kind="vq"), PIXELS, smooth=False,
  ),
  "vq": Kind(VQ, drawn_batch, dict(kind="vq"), PIXELS, smooth=False),
  "vq by gradient": Kind(
    VQ | dict(quantizer="gradient"), drawn_batch,
    dict(kind="vq", distance="absolute"), PIXELS, smooth=False,
  ),
  "vqgan": Kind(
    VQ | dict(kind="vqgan", judge_widths=(5,), judge_norm="none"), drawn_batch,
    dict(kind="vqgan", loss="non_saturating"), PIXELS, smooth=False,
  ),
  "fsq": Kind(
    VQ | dict(quantizer="fsq", codes=None, dim=None, levels=(3, 4, 5)),
    drawn_batch, dict(kind="vq"), PIXELS, smooth=False,
  ),
  "image tokens": Kind(
    dict(
      kind="image_tokens", classes=5, parts=dict(vq=VQ, prior=DECODER),
    ),
    drawn_batch, TOKENS, PIXELS, frozen=("vq",),
  ),
  "image tokens masked": Kind(
    dict(
      kind="image_tokens", classes=5, order="masked",
      parts=dict(vq=VQ, prior=PRIOR),
    ),
    drawn_batch, TOKENS, PIXELS, frozen=("vq",),
  ),
  "image tokens of captions": Kind(
    dict(
      kind="image_tokens", classes=0, vocab=37, text_length=19, text_end=36,
      parts=dict(
        vq=VQ, prior=DECODER | dict(vocab=12 + 37 + 1, position_length=27),
      ),
    ),
    captions_batch, TOKENS | dict(text_weight=0.125), PIXELS, frozen=("vq",),
  ),
  "image tokens of captions masked": Kind(
    dict(
      kind="image_tokens", classes=0, order="masked", vocab=37, text_length=19,
      text_end=36,
      parts=dict(
        vq=VQ, prior=PRIOR | dict(vocab=12 + 37 + 2, position_length=30),
      ),
    ),
    captions_batch, TOKENS, PIXELS, frozen=("vq",),
  ),
  "ctc": Kind(sound.CTC, sound.masked_batch, dict(kind="ctc"), sound.LETTERS),
  "tts": Kind(
    sound.TTS, sound.spoken_batch, dict(kind="speech", bins=20), sound.SPOKEN
  ),
  "whisper": Kind(
    sound.WHISPER, sound.masked_batch,
    dict(kind="tokens", z_loss=1e-3, chunk=5),
    sound.LETTERS,
  ),
}  # fmt: skip


def part_of(name: str) -> Mapping:
  """The keywords of what is trained, a whole model or a part of one."""
  keywords = KINDS[name].model
  return (
    keywords["parts"][trained(keywords)] if "parts" in keywords else keywords
  )


def trained(keywords: Mapping) -> str:
  """The part of a model of several that is."""
  return "prior" if "prior" in keywords["parts"] else "denoiser"


def build(name: str, **changes) -> nn.Module:
  keywords = dict(KINDS[name].model)
  if "parts" in keywords:  # how the trained one is computed
    part = trained(keywords)
    own = {part: keywords["parts"][part] | changes}
    keywords["parts"] = keywords["parts"] | own
  else:
    keywords |= changes
  return MODELS[keywords.pop("kind")](**keywords)


@functools.cache
def variables_of(name: str):
  """Parameters, none of them 0 or 1, and stats."""
  model = build(name)
  found = fresh.variables(model, KINDS[name].batch(1, 4))
  return jax.tree.map(tiny.perturbed, found)


def params_of(name: str):
  return variables_of(name)["params"]


def score_of(name: str, **changes) -> Callable:
  """score(params, batch) -> {name: Mean}."""
  options = dict(KINDS[name].objective)
  objective = OBJECTIVES[options.pop("kind")]
  whole = scorer(
    build(name, **changes), functools.partial(objective, **options)
  )
  fixed = Fixed(None, variables_of(name).get("stats"))

  def score(params, batch):
    return whole(params, batch, None, fixed=fixed)

  return score


@functools.cache
def gradient_of(name: str, **changes) -> Callable:
  """jitted (params, batch) -> (loss sum, gradients)."""
  score = score_of(name, **changes)
  return jax.jit(
    jax.value_and_grad(lambda p, batch: score(p, batch)["loss"].sum)
  )
