"""DistilBERT (arXiv:1910.01108): a student of half the layers of BERT.

Presets: base, base_cased; a second word names the dataset (lm1b, c4, stdlib).
The teacher is frozen and read from a folder or a run: --config.frozen.teacher=
hf:FOLDER or DIR, of BERT in the same size. The student starts as every second
layer of it, without types, pooler and next-sentence head. The loss is the
published code's: 5 times the soft one at temperature 2, 2 times that of masked
tokens, 1 time the cosine of hidden states; rows of 512 tokens, 5e-4.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import bert
from aigc_jax.presets.published import choose

SIZES = {name: bert.SIZES[name] for name in ("base", "base_cased")}
STUDENT = dict(types=0, pooler=False, next_sentence=False)


def get_config(preset="base") -> ConfigDict:
  size, sources = choose(preset, SIZES, "lm1b")
  teacher = bert.MODEL | size
  task = bert.TASK | dict(next_sentence=False, whole_words=False)
  config = bert.encoder(size, bert.MODEL, task, sources)
  config.model = ConfigDict(
    dict(
      kind="roles",
      parts=dict(
        student=teacher | STUDENT | dict(layers=size["layers"] // 2),
        teacher=teacher,
      ),
    )
  )
  config.frozen = ConfigDict(dict(teacher="hf:bert-base"))
  layers = tuple(range(0, size["layers"], 2))
  config.init_parts = ConfigDict(
    dict(student=dict(part="teacher", layers=layers))
  )
  config.objective = ConfigDict(
    dict(
      kind="distill", temperature=2.0, soft=5.0, hard=2.0, cosine=1.0,
      chunk=None,
    )
  )  # fmt: skip
  config.steps = 100_000
  config.data.update(batch=2048, length=512)
  config.optim.update(
    learning_rate=5e-4, schedule="linear", warmup_steps=None,
    warmup_fraction=0.05, final_fraction=0.0, weight_decay=0.0, b2=0.98,
    eps=1e-6,
  )  # fmt: skip
  return config
