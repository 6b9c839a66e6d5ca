"""The run that is interrupted: as small as it gets, with everything in it.

Dropout, micro-batches, a mixture of two sources, two held-out sets, samples.
The preset is the folder with the two texts, and the token stores afterwards.
"""

from aigc_jax.presets import skeleton

STEPS = 20
SAVE = 5
EVALUATE = 10


def get_config(folder=""):
  config = skeleton()
  config.seed = 3
  config.steps = STEPS
  config.compute.microbatches = 2
  config.data.update(
    sources=tuple(
      dict(kind="text", path=f"{folder}/{name}.txt", split="train",
           field="text", weight=weight)
      for name, weight in (("plain", 2.0), ("rhymes", 1.0))
    ),
    tokenizer="bytes", batch=16, length=16, root=f"{folder}/stores",
    validation=0.05,
  )  # fmt: skip
  config.model.update(
    vocab=257, layers=1, dim=16, heads=2, kv_heads=2, head_dim=8, mlp_dim=24,
    dropout=0.1,
  )  # fmt: skip
  config.compute.unroll = None
  config.objective.chunk = None
  config.optim.update(
    learning_rate=1e-2, warmup_steps=4, spike_sigma=8.0, spike_window=8
  )
  heldout = dict(kind="loss", data=dict(split="validation"))
  config.evaluate = dict(
    heldout=dict(heldout, every_steps=EVALUATE, batches=None),
    first=dict(heldout, every_steps=EVALUATE - 2, batches=1),
    samples=dict(
      kind="samples", prompts=("a", "e"), max_tokens=4, temperature=1.0,
      top_p=1.0, num_samples=1, every_steps=EVALUATE,
    ),
  )  # fmt: skip
  config.checkpoint.update(every_steps=SAVE, keep=3)
  config.log.every_steps = 1
  return config
