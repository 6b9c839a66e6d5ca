"""DiT (arXiv:2212.09748), trained by flow matching on the pixels themselves.

Presets: s2, b2, l2, xl2; a second word names the dataset (imagenet, cifar10,
digits); tiny is a small one for images of 8 x 8. The published models read
latents of 32 x 32 x 4: with model.channels=4, model.classes=1000 and
model.sigma=True the widths here have their exact counts. Batch and rate,
without warm-up or decay, as published; the average of the parameters is what
images are drawn with (--weights=average).
"""

from aigc_jax.presets.images import images, of, sized

SIZES = {
  "s2": dict(layers=12, dim=384, heads=6),
  "b2": dict(layers=12, dim=768, heads=12),
  "l2": dict(layers=24, dim=1024, heads=16),
  "xl2": dict(layers=28, dim=1152, heads=16),
  "tiny": dict(layers=4, dim=96, heads=4),
}


def get_config(preset="s2"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 400_000
  generative(config, batch=256, image_size=32)
  config.objective = dict(
    kind="flow",
    prediction="velocity",  # or epsilon, v: objectives/paths.py
    label_dropout=0.1,  # share of rows without a label, for guidance
    variance=0.0,  # weight of the bound by which model.sigma is learnt
  )
  config.optim.update(
    learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.0,
    b2=0.999, average=0.9999,
  )  # fmt: skip
  config.model = dict(
    kind="dit",
    classes=1000,  # labels; one more says that there is none
    image_size=32,
    channels=3,
    patch=2,
    **size,  # layers, dim, heads
    mlp_dim=None,  # 4 dim
    sigma=False,  # whether a variance is predicted too
    activation="gelu_tanh",
    norm_eps=1e-6,
    init_std=None,  # of all weights but those that begin as zeros; by fan-in
    dropout=0.0,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("tiny"):
    small(config)
    config.compute.dtype = "float32"
    config.optim.update(learning_rate=1e-3, warmup_steps=100, average=0.995)
  return of(config, dataset)


def generative(config, *, batch: int, image_size: int) -> None:
  """Data for models that draw: plain pixels from -1 to 1, keys for noise."""
  config.data.update(
    batch=batch, image_size=image_size, crop=1.0, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), draw=True,
  )  # fmt: skip
  config.data.augment.update(crop=None, flip=True)


def small(config) -> None:
  """Minutes on a laptop: images of 8 x 8, such as digits, as they are."""
  brief(config)
  config.model.image_size = 8


def brief(config) -> None:
  """The same but for the model."""
  config.steps = 3000
  config.data.update(batch=64, image_size=8)
  config.data.augment.flip = False
  config.evaluate.heldout.every_steps = 500
  config.checkpoint.every_steps = 500
