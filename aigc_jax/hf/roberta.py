"""RoBERTa: RobertaForMaskedLM, or RobertaModel without the head.

Its positions begin behind the id of the padding: the rows of their table up to
it are never read. transformers counts positions of what is not padding, which
is 0, 1, ... as here where padding stands at the end of a row.
https://huggingface.co/docs/transformers/model_doc/roberta; arXiv:1907.11692.
"""

from collections.abc import Mapping

from aigc_jax.hf import bert
from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.table import Family, Row

ROWS = (
  *bert.body("roberta"),
  *linear("head/dense", "lm_head.dense", "GD->DG", "G->G"),
  *layer_norm("head/norm", "lm_head.layer_norm"),
  Row("head/bias", "lm_head.bias", "V->V"),
)


def settings(c: Settings) -> dict:
  """The encoder of a RoBERTa config.json."""
  bert.check(c)
  c.only("hidden_act", "gelu")  # its head has no other
  start = c.integer("pad_token_id", 1, least=0) + 1
  rows = c.integer("max_position_embeddings", 514)
  if rows <= start:
    raise c.fault("max_position_embeddings", f"more than {start}")
  return bert.PLAIN | bert.sizes(c) | dict(
    position_length=rows - start,
    position_start=start,
    types=c.integer("type_vocab_size", 2),
  )  # fmt: skip


def config(k: Mapping) -> dict:
  """config.json for an encoder; what it cannot say is left out."""
  head = k["token_head"]
  return bert.their_sizes(k) | dict(
    architectures=["RobertaForMaskedLM" if head else "RobertaModel"],
    max_position_embeddings=k["position_start"] + k["position_length"],
    pad_token_id=k["position_start"] - 1,
    type_vocab_size=k["types"],
  )


def limits(k: Mapping) -> list[str]:
  """It has no pairs of texts to judge, and a pooler or the other head."""
  both = k["token_head"] and k["pooler"]
  return ["next_sentence=True"] * k["next_sentence"] + ["pooler=True"] * both


ROBERTA = Family(
  model_type="roberta",
  architecture="RobertaForMaskedLM",
  prefix="roberta.",
  rows=ROWS,
  settings=settings,
  config=config,
  limits=limits,
  kind="encoder",
  heads={
    "token_head": "lm_head.dense.weight",
    "pooler": "roberta.pooler.dense.weight",
  },
  copies={
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
  },
  ignored=("*embeddings.position_ids", "*embeddings.token_type_ids"),
  pipeline="fill-mask",
)
