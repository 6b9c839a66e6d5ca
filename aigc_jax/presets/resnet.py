"""ResNet (arXiv:1512.03385), exact in its parameter counts.

Presets: 18, 34, 50, 101, 152, each with an r before it; a second word names the
dataset (imagenet, cifar10, digits). Trained as in arXiv:1706.02677: 90 epochs,
SGD with momentum 0.9, a learning rate of 0.1 for each 256 images, the
residual's last norm zero at first; along a cosine.
"""

from aigc_jax.presets.images import images, of, sized

BASIC = dict(bottleneck=False, widths=(64, 128, 256, 512))
BOTTLENECK = dict(bottleneck=True, widths=(256, 512, 1024, 2048))

SIZES = {
  "r18": dict(BASIC, blocks=(2, 2, 2, 2)),
  "r34": dict(BASIC, blocks=(3, 4, 6, 3)),
  "r50": dict(BOTTLENECK, blocks=(3, 4, 6, 3)),
  "r101": dict(BOTTLENECK, blocks=(3, 4, 23, 3)),
  "r152": dict(BOTTLENECK, blocks=(3, 8, 36, 3)),
}


def get_config(preset="r50"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 112_590
  config.optim.update(
    kind="sgd", learning_rate=0.4, warmup_steps=6255, b1=0.9,
    weight_decay=5e-5, final_fraction=0.0, clip=None,
  )  # fmt: skip
  config.model = dict(
    kind="resnet",
    classes=1000,  # labels that are told apart
    image_size=224,  # rows and columns of an image
    channels=3,
    **size,  # blocks and widths of each stage; bottleneck: three convolutions
    stem="large",  # or small, 3 x 3 at full size, for images like CIFAR's
    stem_dim=64,
    norm_eps=1e-5,  # added to the variance
    norm_momentum=0.1,  # share of the way of running moments, a step
    zero_init_residual=True,  # whether each block begins as the identity
    init_std=0.01,  # of the head; None: by fan-in
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  return of(config, dataset)
