"""Makes tests/hf/golden: a tiny folder of each family, and its logits.

  python -m tests.hf.make_golden [NAME ...]     (needs the extra [parity])

Without names all of them; logits then differ in their last digits from those
of another machine.
The folders are as transformers writes them, so that what is read without torch
is what people have.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

from tests.hf import models

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMALL = dict(
  vocab_size=17, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
  num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=32,
)  # fmt: skip
GEMMA = SMALL | dict(
  head_dim=4, query_pre_attn_scalar=6, sliding_window=4,
  layer_types=["sliding_attention", "full_attention"],
)  # fmt: skip
NEOX = dict(
  vocab_size=17, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
  num_attention_heads=3, max_position_embeddings=32, rotary_pct=0.5,
)  # fmt: skip
FAMILIES = {
  "gpt2": (
    "gpt2",
    dict(vocab_size=17, n_positions=16, n_embd=12, n_layer=2, n_head=3),
  ),
  "llama": ("llama", SMALL | models.LLAMA3),
  "mistral": ("mistral", SMALL | dict(sliding_window=4)),
  "qwen2": ("qwen2", SMALL | dict(tie_word_embeddings=True)),
  "qwen3": ("qwen3", SMALL | dict(head_dim=6)),
  "gemma": ("gemma", SMALL | dict(head_dim=4)),
  "gemma2": ("gemma2", GEMMA | dict(attn_logit_softcapping=2.0)),
  "gemma3": ("gemma3_text", GEMMA),
  "granite": ("granite", SMALL | models.GRANITE),
  "olmo2": ("olmo2", SMALL),
  "olmo3": (
    "olmo3",
    SMALL
    | dict(
      sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
  ),
  "phi3": (
    "phi3",
    SMALL | dict(pad_token_id=None, original_max_position_embeddings=32),
  ),
  "gpt_neox": ("gpt_neox", NEOX),
  "stablelm": ("stablelm", SMALL | dict(partial_rotary_factor=0.5)),
  "phi": ("phi", SMALL),
  "cohere": ("cohere", SMALL),
  "cohere2": ("cohere2", SMALL | dict(sliding_window=4)),
  "smollm3": (
    "smollm3",
    SMALL | dict(no_rope_layers=[1, 0], pad_token_id=None),
  ),
}


def main(names: list[str]):
  tokens = np.arange(11)[None] * 5 % 17
  for name in names or FAMILIES:
    shutil.rmtree(GOLDEN / name, ignore_errors=True)
    model_type, config = FAMILIES[name]
    model = models.build(model_type, config)
    model.save_pretrained(GOLDEN / name)
    path = GOLDEN / name / "config.json"
    kept = json.loads(path.read_text())
    kept.pop("transformers_version", None)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    (GOLDEN / name / "generation_config.json").unlink(missing_ok=True)
    np.save(GOLDEN / name / "logits.npy", models.logits(model, tokens))


if __name__ == "__main__":
  main(sys.argv[1:])
