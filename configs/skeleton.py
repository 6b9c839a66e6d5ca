"""Every key that a config has, and what it means. Not a run by itself.

Configs start from `skeleton()` and change what they want: a key that is not
here is an error. Sizes are those of no published model.
"""

from ml_collections import ConfigDict, config_dict


def skeleton() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # of parameters, dropout and the order of the data
  config.steps = 1000  # updates in the whole run
  config.total_tokens = 0  # instead of steps, where it is not 0
  config.microbatches = 1  # pieces of a batch, one after the other
  config.steps_per_call = 1  # steps in one call of the device
  # Whether weights go to model.dtype once a step, not at each of their uses.
  config.cast_once = True
  # Who multiplies matrices in a step: xla, or on a single CPU also onednn. That
  # is faster for large models, and compiles at every start.
  config.library = "xla"
  config.init_from = ""  # another run's parameters to start from, or hf:FOLDER
  # How many devices along each axis; one of them may be -1 for the rest.
  config.mesh = dict(
    data=1, fsdp=-1, expert=1, tensor=1, sequence=1, pipeline=1
  )
  config.data = dict(
    sources=(  # mixed by weight
      dict(kind="corpus", name="stdlib", split="train", weight=1.0),
    ),
    path="",  # instead of sources: a file, a folder or a glob of text
    field="text",  # of the records, where path leads to JSON lines or Parquet
    tokenizer="sentencepiece",  # trained here; or bytes, x.model, hf:FOLDER
    tokenizer_vocab=4096,  # pieces of a sentencepiece trained here
    task=dict(kind="next_token"),
    batch=32,  # rows of all devices together
    length=256,  # tokens in a row
    segments=False,  # whether documents in a row see only themselves
    shuffle=True,
    # Share held out where a source has no such split; 0 with text of one's own
    # is training without held-out text.
    validation=0.02,
    validation_path="",  # instead: a file, folder or glob of held-out text
    root="~/.cache/aigc_jax",  # where token stores are kept
    skip_steps=(),  # steps whose batches are left out, after a loss spike
  )
  config.model = dict(
    kind="decoder",
    vocab=4096,
    layers=4,
    dim=128,
    heads=4,
    kv_heads=4,
    head_dim=32,  # 0 is dim / heads
    mlp_dim=384,
    activation="silu",  # or gelu (exact), gelu_tanh, relu, relu2
    gated=True,  # whether the MLP is act(gate) * up or act(up)
    norm="rms",  # or layer
    norm_eps=1e-6,
    norm_offset=0.0,  # 1.0 multiplies by 1 + scale, as Gemma does
    norm_bias=False,
    attention_bias=False,  # of query, key and value
    out_bias=False,  # of attention's output
    mlp_bias=False,
    post_norm=False,  # norms after attention and MLP too, as in Gemma 2
    qk_norm=False,  # norms of queries and keys, as in Qwen 3
    position="rotary",  # or learned, sinusoidal, none
    position_length=0,  # rows of learned positions
    rotary_base=10_000.0,
    rotary_local_base=0.0,  # of layers with a window; 0.0 is rotary_base
    # or dict(kind="linear", factor=f), or kind="llama3" as in configs/llama.py
    rotary_scaling=None,
    windows=(),  # by layer, repeated: (512, None) is every other layer local
    attention_scale=0.0,  # of the scores; 0.0 is head_dim**-0.5
    attention_softcap=0.0,  # of the scores; 0.0 is none
    logit_softcap=0.0,
    embed_scale=False,  # whether embeddings are multiplied by sqrt(dim)
    tied=True,  # whether the embedding is also the head
    init_std=0.0,  # of all weights; 0.0 is by fan-in
    dropout=0.0,
    dtype="float32",  # of activations; parameters are float32
    # plain: of operands in dtype; bf16: in bfloat16, whatever dtype is; fp8: in
    # 8 bits, those of the blocks with weights
    products="plain",
    remat="none",  # what is computed again: none, dots, all_dots (less), full
    unroll=1,  # layers in one turn of the loop; 0 is all
    kernel="auto",  # of attention: xla, chunked, blocks, cudnn, splash
    fuse_projections=True,  # q, k and v, or gate and up, as one, on one device
    embed_gradient="auto",  # or scatter, product, sorted: layers/lookup.py
  )
  config.objective = dict(
    kind="tokens",
    z_loss=0.0,
    chunk=1024,  # tokens whose logits exist at once; 0 is all
    logits="float32",  # or bfloat16, what logits are rounded to
  )
  config.optim = dict(
    kind="adamw",  # or lion, adafactor, sgd, muon
    learning_rate=3e-4,  # the peak
    schedule="cosine",  # or constant, linear, rsqrt, wsd
    warmup_steps=100,
    decay_steps=config_dict.placeholder(int),  # None: see optim/schedules.py
    final_fraction=0.1,  # of the peak, at the end
    weight_decay=0.1,  # not on norms, biases, embeddings
    clip=1.0,  # largest global norm of the gradient; 0.0 is none
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    # dict(patterns=["head/*"], weight_decay=0.0, learning_rate_factor=1.0)
    groups=(),
    mu_dtype="float32",  # or bfloat16, of the first moment
    spike_sigma=0.0,  # skip a step this many deviations above; 0.0 is never
    spike_window=128,  # of that many steps before it
  )
  # One entry for each evaluation; batches=-1 is the whole set.
  config.evaluate = dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=500, batches=-1
    )
  )
  config.checkpoint = dict(every_steps=500, keep=3, keep_every_steps=0)
  config.log = dict(every_steps=10)
  return config
