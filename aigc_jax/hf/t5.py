"""T5 and T5 1.1 (also Flan-T5): T5ForConditionalGeneration.

https://huggingface.co/docs/transformers/model_doc/t5; arXiv:1910.10683.
"""

from collections.abc import Mapping

from aigc_jax.hf.settings import ACTIVATIONS, LARGEST, Settings
from aigc_jax.hf.table import Family, Row

# How an encoder-decoder is computed: no config.json says it.
PLAIN = dict(
  dropout=0.0,
  embed_std=None,
  init_std=None,
  remat="none",
  unroll=1,
  kernel="auto",
  fuse_projections=True,
  products="plain",
  embed_gradient="auto",
)
# Their name of an MLP: our activation, and whether it is gated.
MLPS = {
  "relu": ("relu", False),
  "gelu_new": ("gelu_tanh", False),
  "gelu": ("gelu", False),
  "silu": ("silu", False),
  "gated-relu": ("relu", True),
  # By T5's own rule that is the approximation by tanh.
  "gated-gelu": ("gelu_tanh", True),
  "gated-silu": ("silu", True),
}
FARTHEST = 1 << 20  # tokens apart that are told apart
NAMES = {ours: theirs for theirs, ours in MLPS.items()}


def _side(side: str, attentions: tuple[tuple[str, str], ...]):
  """The rows of one stack; its layers have their parts by number."""
  stack, block = f"{side}/stack", f"{side}.block.{{layer}}.layer"
  for i, (ours, theirs) in enumerate(attentions):
    name = f"{block}.{i}.{theirs}"
    for part, short, axes in (
      ("query", "q", "(NH)D->DNH"),
      ("key", "k", "(KH)D->DKH"),
      ("value", "v", "(KH)D->DKH"),
      ("out", "o", "D(NH)->NHD"),
    ):
      yield Row(f"{stack}/{ours}/{part}/w", f"{name}.{short}.weight", axes)
    yield Row(
      f"{stack}/norm_{ours}/scale", f"{block}.{i}.layer_norm.weight", "D->D"
    )
  mlp = f"{block}.{len(attentions)}"
  yield Row(f"{stack}/norm_mlp/scale", f"{mlp}.layer_norm.weight", "D->D")
  gate = f"{stack}/mlp/gate/w"
  for path, theirs, axes, beside in (
    (f"{stack}/mlp/up/w", "wi", "FD->DF", ""),
    (f"{stack}/mlp/up/w", "wi_1", "FD->DF", gate),
    (gate, "wi_0", "FD->DF", ""),
    (f"{stack}/mlp/down/w", "wo", "DF->FD", ""),
  ):
    name = f"{mlp}.DenseReluDense.{theirs}.weight"
    yield Row(path, name, axes, beside=beside)
  first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
  yield Row(f"{side}/position/table", f"{first}.weight", "RN->RN")
  yield Row(f"{side}/norm/scale", f"{side}.final_layer_norm.weight", "D->D")


OWN = ("attention", "SelfAttention")
ROWS = (
  Row("embed/table", "shared.weight", "VD->VD"),
  *_side("encoder", (OWN,)),
  *_side("decoder", (OWN, ("cross_attention", "EncDecAttention"))),
  Row("head/table", "lm_head.weight", "VD->VD"),
)


def settings(c: Settings) -> dict:
  """The encoder-decoder of a T5 config.json."""
  c.only("is_encoder_decoder", True)
  layers = c.integer("num_layers", 6)
  tied = c.flag("tie_word_embeddings", True)
  # Newer than `tied`, which said both; a tied model may go without it.
  scaled = c.flag("scale_decoder_outputs", tied)
  if scaled and not tied:
    raise c.fault("scale_decoder_outputs", "false where nothing is tied")
  activation, gated = c.among("feed_forward_proj", MLPS, "relu")
  # What transformers makes of that key, writes beside it, and goes by.
  own = "dense_act_fn"
  if own in c and c.among(own, ACTIVATIONS) != activation:
    raise c.fault(own, "the activation of feed_forward_proj")
  c.only("is_gated_act", gated)
  buckets = c.integer("relative_attention_num_buckets", 32)
  distance = c.integer("relative_attention_max_distance", 128)
  if buckets % 4:
    raise c.fault("relative_attention_num_buckets", "a multiple of 4")
  if not buckets // 4 < distance <= FARTHEST:
    raise c.fault(
      "relative_attention_max_distance",
      f"more than a quarter of the buckets, and at most {FARTHEST}",
    )
  return PLAIN | dict(
    vocab=c.integer("vocab_size", 32_128),
    encoder_layers=layers,
    decoder_layers=c.integer("num_decoder_layers", layers),
    dim=c.integer("d_model", 512),
    heads=c.integer("num_heads", 8),
    head_dim=c.integer("d_kv", 64),
    mlp_dim=c.integer("d_ff", 2048),
    activation=activation,
    gated=gated,
    norm="rms",
    norm_eps=c.number("layer_norm_epsilon", 1e-6),
    norm_bias=False,
    norm_place="before",
    final_norm=True,
    attention_bias=False,
    mlp_bias=False,
    attention_scale=1.0,
    position="relative",
    relative_buckets=buckets,
    relative_distance=distance,
    embed_scale=False,
    shared=True,
    tied=tied,
    tied_scale=scaled,
    head_bias=False,
    start_token=start_of(c, 0),
  )


def start_of(c: Settings, default: int) -> int:
  """The id that targets are written after."""
  start = c.integer("decoder_start_token_id", default, least=0)
  if start >= c.integer("vocab_size", LARGEST):
    raise c.fault("decoder_start_token_id", "an id below vocab_size")
  return start


def config(k: Mapping) -> dict:
  """config.json for an encoder-decoder; what it cannot say is left out."""
  return dict(
    is_encoder_decoder=True,
    vocab_size=k["vocab"],
    num_layers=k["encoder_layers"],
    num_decoder_layers=k["decoder_layers"],
    d_model=k["dim"],
    num_heads=k["heads"],
    d_kv=k["head_dim"] or k["dim"] // k["heads"],
    d_ff=k["mlp_dim"] or 4 * k["dim"],
    feed_forward_proj=NAMES.get((k["activation"], k["gated"]), "none"),
    layer_norm_epsilon=k["norm_eps"],
    relative_attention_num_buckets=k["relative_buckets"] or 1,
    relative_attention_max_distance=k["relative_distance"] or 1,
    tie_word_embeddings=k["tied"],
    decoder_start_token_id=k["start_token"],
    dropout_rate=k["dropout"],
  )


T5 = Family(
  model_type="t5",
  architecture="T5ForConditionalGeneration",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  kind="encoder_decoder",
  copies={
    f"{side}.embed_tokens.weight": "shared.weight"
    for side in ("encoder", "decoder")
  },
  pipeline="text2text-generation",
  aliases={
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
  },
)
