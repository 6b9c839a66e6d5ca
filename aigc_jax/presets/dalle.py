"""Image tokens: a prior over the codes of a frozen VQ, told a label.

Presets: small, causal as in DALL-E (arXiv:2102.12092), on the codes of
configs/vq.py:small; maskgit, at the paper's size (arXiv:2202.04200), on those
of configs/vq.py:f16; tiny and tiny_masked on those of configs/vq.py:tiny. A
second word names the dataset (imagenet, cifar10, digits). The VQ is a run of
one's own: --config.frozen.vq=DIR.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import vq
from aigc_jax.presets.dit import brief, generative
from aigc_jax.presets.images import LABELS, images, of, sized
from aigc_jax.presets.keys import skeleton

# vq: the preset that the codes are of. The rest is of the prior.
SIZES = {
  "small": dict(vq="small", layers=12, dim=512, heads=8, order="causal"),
  "maskgit": dict(vq="f16", layers=24, dim=768, heads=8, order="masked"),
  "tiny": dict(vq="tiny", layers=4, dim=96, heads=4, order="causal"),
  "tiny_masked": dict(vq="tiny", layers=4, dim=96, heads=4, order="masked"),
}


def get_config(preset="small"):
  size, dataset = sized(SIZES, preset)
  codes, order = vq.MODEL | vq.SIZES[size.pop("vq")], size.pop("order")
  tiny = preset.startswith("tiny")
  config = images()
  config.steps = 300_000
  generative(config, batch=256, image_size=codes["image_size"])
  if dataset == "digits":
    codes["channels"] = 1
  if tiny:
    codes["image_size"] = 8
  config.objective = dict(
    kind="image_tokens",
    label_dropout=0.1,  # share of rows without a label, for guidance
    label_smoothing=0.0,  # share of a target that is any code
    chunk=None,  # of codes whose logits exist at once; None: all
  )
  config.model = ConfigDict(
    dict(
      kind="image_tokens",
      classes=LABELS[dataset],
      order=order,  # of codes: causal, or masked, in none
      parts=dict(vq=codes, prior=prior(order, codes, LABELS[dataset], size)),
    )
  )
  config.frozen = ConfigDict(dict(vq="VQ_RUN"))  # a run of configs/vq.py
  config.optim.update(
    learning_rate=3e-4, weight_decay=0.05, b2=0.96, warmup_steps=5000
  )
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if tiny:
    brief(config)
    config.optim.update(learning_rate=1e-3, warmup_steps=100, b2=0.99)
  return of(config, dataset)


def prior(order: str, codes: dict, labels: int, size: dict) -> dict:
  """The model that tells the codes of an image, in that order."""
  count = codes["codes"]
  places = (codes["image_size"] // 2 ** len(codes["widths"])) ** 2
  if order == "masked":
    return dict(
      kind="encoder",
      vocab=count + labels + 2,  # codes, labels, none, and what hides a code
      position_length=places + 1,
      types=0,
      mlp_dim=None,  # 4 dim
      activation="gelu",
      norm_eps=1e-12,
      init_std=0.02,
      dropout=0.1,
      **size,
    )
  # GPT-2's parts, as of its preset.
  model = skeleton().model.to_dict()
  return model | dict(
    vocab=count + labels + 1,  # codes, labels, none
    position="learned",
    position_length=places,
    norm="layer",
    norm_bias=True,
    activation="gelu_tanh",
    gated=False,
    attention_bias=True,
    out_bias=True,
    mlp_bias=True,
    init_std=0.02,
    dropout=0.1,
    **size,
  )
