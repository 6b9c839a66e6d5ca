"""BERT (arXiv:1810.04805): masked tokens, and whether a text follows another.

Presets: base, large, and base_cased, large_cased with the vocabulary of the
cased release; a second word names the dataset (lm1b, c4, stdlib). As in the
paper (A.2): a million steps of 256 rows, Adam at 1e-4, warm-up over 10,000
steps, then linear, dropout 0.1 (of attention's weights none here). 128 tokens a
row, as for nine tenths of the paper's steps; the rest had 512, which is
--config.data.length=512 on resume. The published tokenizers are files that one
must have: --config.data.tokenizer=hf:FOLDER; without one a SentencePiece of as
many pieces is trained, [CLS], [SEP] and [MASK] among them.
"""

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton
from aigc_jax.presets.published import choose

BASE = dict(layers=12, dim=768, heads=12, mlp_dim=3072)
LARGE = dict(layers=24, dim=1024, heads=16, mlp_dim=4096)

SIZES = {
  "base": BASE | dict(vocab=30_522),
  "large": LARGE | dict(vocab=30_522),
  "base_cased": BASE | dict(vocab=28_996),
  "large_cased": LARGE | dict(vocab=28_996),
}

MODEL = dict(
  kind="encoder", activation="gelu", norm_eps=1e-12, position_length=512,
  position_start=0, types=2, token_head=True, pooler=True, next_sentence=True,
  init_std=0.02, dropout=0.1,
)  # fmt: skip
TASK = dict(
  kind="masked", share=0.15, as_mask=0.8, as_other=0.1, whole_words=False,
  still=False, edges=True, next_sentence=True, mask=None,
)  # fmt: skip


def get_config(preset="base") -> ConfigDict:
  found, sources = choose(preset, SIZES, "lm1b")
  config = encoder(found, MODEL, TASK, sources)
  config.steps = 1_000_000
  config.data.update(batch=256, length=128)
  config.optim.update(
    learning_rate=1e-4, schedule="linear", warmup_steps=10_000,
    final_fraction=0.0, weight_decay=0.01, b2=0.999, eps=1e-6,
  )  # fmt: skip
  return config


def encoder(size: dict, model: dict, task: dict, sources: tuple) -> ConfigDict:
  """What BERT and RoBERTa share: a masked task and its objective."""
  config = skeleton()
  config.model = ConfigDict(model | size)
  config.compute.update(dtype="bfloat16", remat="dots")
  config.data.update(
    sources=sources, tokenizer_vocab=size["vocab"], validation=0.001
  )
  config.data.task = ConfigDict(task)
  config.objective = ConfigDict(
    dict(
      kind="masked", chunk=None, logits="float32",
      next_sentence=task["next_sentence"],
    )
  )  # fmt: skip
  config.evaluate.heldout.update(every_steps=2000, batches=64)
  config.checkpoint.update(every_steps=1000, keep_every_steps=10_000)
  return config
