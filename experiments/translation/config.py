r"""English to French on a few thousand sentences of programs' catalogues.

  python -m aigc_jax.train --config=experiments/translation/config.py:OUT \
      --workdir=DIR

OUT is the folder that gather.py wrote.
"""

from aigc_jax.presets import transformer


def get_config(folder):
  config = transformer.get_config("base")
  config.steps = 1000
  config.model.update(
    vocab=2048, encoder_layers=3, decoder_layers=3, dim=192, mlp_dim=384,
    heads=4, norm="rms", norm_bias=False, norm_place="before", final_norm=True,
    attention_bias=False, mlp_bias=False, activation="silu", gated=True,
    dropout=0.2,
  )  # fmt: skip
  config.compute.dtype = "float32"
  sentences = dict(
    kind="json", path=f"{folder}/sentences.jsonl", source="en", target="fr",
    weight=0.6,
  )  # fmt: skip
  phrases = sentences | dict(path=f"{folder}/phrases.jsonl", weight=0.4)
  config.data.update(
    sources=(sentences, phrases), tokenizer_vocab=2000, batch=24,
    source_length=64, target_length=72, packed=True, long="left_out",
    validation=0.05,
  )  # fmt: skip
  config.optim.update(
    kind="muon", learning_rate=1e-2, schedule="linear", warmup_steps=50,
    final_fraction=0.0, weight_decay=0.05, clip=1.0, b1=0.9, b2=0.95, eps=1e-8,
  )  # fmt: skip
  config.evaluate.heldout.update(
    data=dict(split="validation", sources=(sentences,)), every_steps=250,
    batches=None,
  )  # fmt: skip
  config.checkpoint.update(every_steps=250, keep=2, keep_every_steps=None)
  config.log.every_steps = 25
  return config
