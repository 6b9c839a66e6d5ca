"""Every key that a config has, and what it means. Not a run by itself.

Configs start from `skeleton()` and change what they want: a key that is not
here is an error. Sizes are those of no published model. None is what follows
by itself: derived from other keys, all there is, or nothing at all, as the
comment of a key says. The table of all keys in configs/README.md is made from
this file.
"""

from ml_collections import ConfigDict


def skeleton() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # of parameters, dropout and the order of the data
  config.steps = 1000  # updates in the whole run; None where one of these says
  config.total_tokens = None  # when it ends: once so many are consumed
  config.total_examples = None  # the same, in windows of data.length
  config.total_flops = None  # the same, in FLOPs
  config.tokens_per_parameter = None  # the same, for each parameter
  config.init_from = None  # another run's parameters, or hf:FOLDER; None: fresh
  # A run whose whole state, data position and rows this one goes on from, with
  # another length, decay or data.
  config.branch_from = None
  config.branch_step = None  # one that it has a checkpoint of; None: the last
  # Parts of the model that are not trained, "stack" or "stack/mlp": where each
  # has its parameters from, a run or hf:FOLDER; None for those of the start.
  config.frozen = {}
  # Parts that start as copies of others, of stacked layers some:
  # dict(student=dict(part="teacher", layers=(0, 2, 4))).
  config.init_parts = {}
  # How many devices along each axis; one of them may be None, for the rest.
  config.mesh = dict(
    data=1, fsdp=None, expert=1, tensor=1, sequence=1, pipeline=1
  )
  config.data = dict(
    kind="text",  # what there is to learn from
    sources=(  # mixed by weight
      dict(kind="corpus", name="stdlib", split="train", weight=1.0),
    ),
    path=None,  # instead of sources: a file, a folder or a glob of text
    field="text",  # of the records, where path leads to JSON lines or Parquet
    tokenizer="sentencepiece",  # trained here; or bytes, x.model, hf:FOLDER
    tokenizer_vocab=4096,  # pieces of a sentencepiece trained here
    task=dict(kind="next_token"),  # what of a window is input, what is target
    batch=32,  # rows of all devices together
    length=256,  # tokens in a row
    segments=False,  # whether documents in a row see only themselves
    shuffle=True,  # whether windows come in a random order, new in each epoch
    # Share held out where a source has no such split; 0 with text of one's own
    # is training without held-out text.
    validation=0.02,
    validation_path=None,  # instead: a file, folder or glob of held-out text
    root="~/.cache/aigc_jax",  # where token stores are kept
    skip_steps=(),  # steps whose batches are left out, after a loss spike
  )
  config.model = dict(
    kind="decoder",  # the architecture
    vocab=4096,  # rows of the embedding: at least the tokenizer's ids
    layers=4,  # blocks of attention and MLP
    dim=128,  # width of the residual stream
    heads=4,  # of queries
    kv_heads=None,  # of keys and values; None: heads
    head_dim=None,  # width of a head; None: dim / heads
    # Width of the MLP. None: 8/3 dim where it is gated, else 4 dim, rounded up
    # to a multiple of 128 (of 8, below a dim of 128).
    mlp_dim=None,
    activation="silu",  # or gelu (exact), gelu_tanh, relu, relu2
    gated=True,  # whether the MLP is act(gate) * up or act(up)
    norm="rms",  # or layer
    norm_eps=1e-6,  # added to the variance
    norm_offset=0.0,  # 1.0 multiplies by 1 + scale, as Gemma does
    norm_bias=False,  # whether norms add a bias
    attention_bias=False,  # of query, key and value
    out_bias=False,  # of attention's output
    mlp_bias=False,  # of the MLP's matrices
    pre_norm=True,  # norms before attention and MLP
    post_norm=False,  # norms after attention and MLP too, as in Gemma 2
    qk_norm=False,  # norms of queries and keys, as in Qwen 3
    qk_norm_joint=False,  # over all heads at once, as in OLMo 2
    parallel=False,  # attention and MLP side by side, as in GPT-NeoX
    shared_norm=False,  # where they are parallel, one norm for both (Phi)
    position="rotary",  # or learned, sinusoidal, none
    position_length=None,  # rows of learned positions; None: data.length
    rotary_base=10_000.0,  # wavelength of the slowest plane, over 2 pi
    rotary_local_base=None,  # of layers with a window; None: rotary_base
    # dict(kind="linear", factor=f), or kind="llama3" as in presets/llama.py;
    # None: frequencies as they are
    rotary_scaling=None,
    rotary_dim=None,  # components of a head that are turned; None: all
    rotary_layers=(),  # by layer, repeated: (True, False) turns every other
    windows=(),  # by layer, repeated: (512, None) is every other layer local
    attention_scale=None,  # of the scores; None: head_dim**-0.5
    attention_softcap=None,  # of the scores; None: no cap
    logit_softcap=None,  # of the logits; None: no cap
    logit_multiplier=None,  # of the logits, before their cap; None: 1
    embed_scale=False,  # whether embeddings are multiplied by sqrt(dim)
    embed_multiplier=None,  # of the embeddings; None: 1
    residual_multiplier=None,  # of what attention and MLP add; None: 1
    tied=True,  # whether the embedding is also the head
    head_bias=False,  # of the logits, where it is not
    init_std=None,  # of all weights; None: by fan-in
    # How tensors change with the size: standard, or from a base's numbers on,
    # mup by the width, completep (a half: depth_mup) by the depth too
    parametrization="standard",
    base_dim=None,  # of the base, on which rate, decay, ... were tuned
    base_layers=None,  # of the base
    base_heads=None,  # of the base; None: as dim has grown
    base_kv_heads=None,  # of the base; None: as heads have grown
    base_head_dim=None,  # of the base; None: head_dim
    base_mlp_dim=None,  # of the base; None: as dim has grown
    dropout=0.0,  # share of activations set to zero in training
  )
  # How it is computed, which changes no result beyond rounding: of models of
  # all kinds, and of all parts of one. A key that is set and that nothing in
  # the config takes is refused.
  config.compute = dict(
    dtype="float32",  # of activations; parameters are float32
    # plain: of operands in dtype; bf16: in bfloat16, whatever dtype is; fp8: in
    # 8 bits, those of the blocks with weights
    products="plain",
    remat="none",  # what is computed again: none, dots, all_dots (less), full
    unroll=1,  # layers in one turn of the loop; None: all
    kernel="auto",  # of attention: xla, chunked, blocks, cudnn, splash
    fuse_projections=True,  # q, k and v, or gate and up, as one, on one device
    embed_gradient="auto",  # or scatter, product, sorted: layers/lookup.py
    # Pieces of a batch, one after the other. More than 1 is refused where rows
    # look at each other, as in batch norm: there the result would be another.
    microbatches=1,
    steps_per_call=1,  # steps in one call of the device
    cast_once=True,  # weights go to dtype once a step, not at each use
    # Who multiplies matrices in a step: xla, or on a single CPU also onednn.
    # That is faster for large models, and compiles at every start.
    library="xla",
  )
  config.objective = dict(
    kind="tokens",  # cross entropy of the targets
    z_loss=0.0,  # weight of log(Z)**2
    chunk=1024,  # tokens whose logits exist at once; None: all
    logits="float32",  # or bfloat16, what logits are rounded to
  )
  config.optim = dict(
    kind="adamw",  # or lion, adafactor, sgd, muon
    learning_rate=3e-4,  # the peak
    # Or constant, linear, rsqrt, wsd (its decay a line), wsd_cosine, wsd_sqrt.
    schedule="cosine",  # from the peak on
    warmup_steps=100,  # until the peak
    warmup_fraction=None,  # of all steps; warmup_steps is None or 0 then
    # Of the decay. None: from the warm-up to the end; of wsd, the last fifth.
    decay_steps=None,
    final_fraction=0.1,  # of the peak, at the end
    weight_decay=0.1,  # not on norms, biases, embeddings
    clip=1.0,  # largest global norm of the gradient; None: no clipping
    b1=0.9,  # decay of the first moment
    b2=0.95,  # decay of the second moment
    eps=1e-8,  # added to the root of the second moment
    # dict(patterns=["head/*"], weight_decay=0.0, learning_rate_factor=1.0); of
    # a player, who moves by itself, also every_steps=5 and clip=1.0
    groups=(),
    mu_dtype="float32",  # or bfloat16, of the first moment
    spike_sigma=None,  # skip a step this many deviations above; None: never
    spike_window=128,  # of that many steps before it
    # What a step keeps of the average of the parameters, 0.999; None: no such.
    # It begins as the first parameters, of which 0.999**N is in it after N.
    average=None,
  )
  # One entry for each evaluation, under a name of its own.
  config.evaluate = dict(
    heldout=dict(
      # Or samples: texts that the model writes; of images, images: grids that
      # it draws, and image_scores: FID and others (evaluators/README.md).
      kind="loss",
      data=dict(split="validation"),  # and sources=(...), of other data
      every_steps=500,  # None: at the end only, where each of them runs
      batches=None,  # how many of the set; None: all
      weights="raw",  # or average, see optim.average
    )
  )
  config.checkpoint = dict(
    every_steps=500,  # None: at the end only, where one is always saved
    keep=3,  # how many of the newest stay, beside what was resumed from
    keep_every_steps=None,  # multiples of it stay for ever; None: none do
  )
  config.log = dict(every_steps=10)  # rows of metrics.jsonl
  return config
