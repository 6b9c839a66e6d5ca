"""Image tokens: a prior over the codes of a frozen VQ, told a caption or label.

Presets: text, causal and told captions as in DALL-E (arXiv:2102.12092), on the
codes of configs/vq.py:small; small, the same told labels; maskgit, at the
paper's size (arXiv:2202.04200), on those of configs/vq.py:f16; tiny and
tiny_masked on those of configs/vq.py:tiny, tiny_text and tiny_text_masked told
captions. A second word names the dataset of labelled images (imagenet, cifar10,
digits). The VQ is a run of one's own: --config.frozen.vq=DIR.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import vq
from aigc_jax.presets.captions import captions
from aigc_jax.presets.dit import brief, generative
from aigc_jax.presets.images import images, labels_of, of, sized
from aigc_jax.presets.keys import skeleton
from aigc_jax.presets.vae import rows_of

# vq: the preset that the codes are of. text: tokens of a caption; None: it is
# told labels. The rest is of the prior.
TINY = dict(vq="tiny", layers=4, dim=96, heads=4)
SMALL = dict(vq="small", layers=12, dim=512, heads=8, order="causal")
SIZES = {
  "small": SMALL | dict(text=None),
  "maskgit": dict(
    vq="f16", layers=24, dim=768, heads=8, order="masked", text=None
  ),
  "tiny": TINY | dict(order="causal", text=None),
  "tiny_masked": TINY | dict(order="masked", text=None),
  "text": SMALL | dict(text=256),
  "tiny_text": TINY | dict(order="causal", text=24),
  "tiny_text_masked": TINY | dict(order="masked", text=24),
}


def get_config(preset="small"):
  size, dataset = sized(SIZES, preset)
  codes, order = vq.MODEL | vq.SIZES[size.pop("vq")], size.pop("order")
  text, tiny = size.pop("text"), preset.startswith("tiny")
  if text and "," in preset:
    size_alone = preset.partition(",")[0]
    raise ValueError(
      f"preset {preset!r}: take {size_alone!r} alone"
      + (
        ", which is of captioned digits"
        if tiny
        else "; captioned images are named by config.data.sources"
      )
    )
  config = captions() if text else images()
  config.steps = 300_000
  generative(config, batch=256, image_size=codes["image_size"])
  if dataset == "digits" or (text and tiny):
    codes["channels"] = 1
  if tiny:
    codes["image_size"] = 8
  config.objective = dict(
    kind="image_tokens",
    label_dropout=0.1,  # share of rows without label or caption, for guidance
    label_smoothing=0.0,  # share of a target that is any code
    chunk=None,  # of codes whose logits exist at once; None: all
    # Of the captions' own tokens in the loss; the codes have the rest.
    text_weight=0.125 if text and order == "causal" else 0.0,
  )
  words = _told_captions(config, text, tiny) if text else {}
  ids = words.get("vocab") or labels_of(dataset)
  config.model = ConfigDict(
    dict(
      kind="image_tokens",
      classes=0 if text else labels_of(dataset),
      order=order,  # of codes: causal, or masked, in none
      **words,
      parts=dict(vq=codes, prior=prior(order, codes, ids, text or 1, size)),
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
  return config if text else of(config, dataset)


def _told_captions(config: ConfigDict, length: int, tiny: bool) -> dict:
  """The data's part of a model that is told captions; the model's keys."""
  config.data.update(length=length, tokenizer_vocab=16_384)
  config.data.augment.flip = False  # captions say left and right
  del config.evaluate.recall
  vocab, end = 16_384, 1  # the end of a sentencepiece is 1
  if tiny:
    config.data.sources = (
      dict(kind="package", name="digits", split="train", weight=1.0),
    )
    config.data.update(tokenizer="bytes", channels=1, mean=(0.5,), std=(0.5,))
    vocab, end = 257, 256
  return dict(
    vocab=vocab,  # at least the tokenizer's ids; None: it is told labels
    text_length=length,  # tokens of a caption, its end included
    text_end=end,  # the id that ends a caption
  )


def prior(order: str, codes: dict, told: int, lead: int, size: dict) -> dict:
  """The model that tells the codes of an image, in that order.

  told: ids of labels or text; lead: how many of them come before the codes.
  """
  count = codes["codes"]
  places = rows_of(codes) ** 2
  if order == "masked":
    return dict(
      kind="encoder",
      vocab=count + told + 2,  # codes, labels, none, and what hides a code
      position_length=places + lead,
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
    vocab=count + told + 1,  # codes, labels, none
    position="learned",
    position_length=places + lead - 1,
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
