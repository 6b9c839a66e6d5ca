"""Laws of encoder-decoders, of every style."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, sharding, tree
from aigc_jax.models import encoder_decoder
from aigc_jax.presets import t5, transformer
from aigc_jax.run import compute
from tests import seq2seq, tiny
from tests.golden import written
from tests.sweep import sweep

STYLES = sorted(seq2seq.STYLES)
CLOSE = dict(rtol=2e-4, atol=2e-5)


def gradient(style: str, **changes):
  score = tiny.score_of(seq2seq.build(style, **changes))
  batch = seq2seq.batch_of()
  f = jax.value_and_grad(lambda p: score(p, batch, None)["loss"].sum)
  return jax.jit(f)(seq2seq.params_of(style))


@pytest.mark.parametrize("style", sweep(STYLES, "t5"))
def test_a_token_never_changes_the_logits_before_it(style):
  f, params = seq2seq.predictor(style), seq2seq.params_of(style)
  batch = seq2seq.batch_of()
  other = (batch["tokens"][:, 3] + 1) % 37
  a, b = (
    f(params, batch),
    f(params, batch | {"tokens": batch["tokens"].at[:, 3].set(other)}),
  )
  np.testing.assert_array_equal(a[:, :3], b[:, :3])
  assert not np.array_equal(a[:, 3:], b[:, 3:])


@pytest.mark.parametrize("style", sweep(STYLES, "t5"))
def test_every_token_of_the_source_is_read_and_junk_in_its_padding_is_not(
  style,
):
  f, params = seq2seq.predictor(style), seq2seq.params_of(style)
  batch = seq2seq.batch_of()
  real = batch["encoder_segments"] > 0
  changed = (batch["encoder_tokens"] + 1) % 37
  a = f(params, batch)
  junk = jnp.where(real, batch["encoder_tokens"], changed)
  np.testing.assert_array_equal(f(params, batch | {"encoder_tokens": junk}), a)
  first = batch["encoder_tokens"].at[:, 0].set(changed[:, 0])
  b = f(params, batch | {"encoder_tokens": first})
  assert np.all(np.any(a != b, axis=(1, 2)))


@pytest.mark.parametrize("style", sweep(["t5", "transformer"], "t5"))
def test_padding_beside_a_source_changes_nothing(style):
  f, params = seq2seq.predictor(style), seq2seq.params_of(style)
  batch = seq2seq.batch_of()
  row = {k: x[1:] for k, x in batch.items()}
  length = int(row.pop("encoder_segments").sum())
  row["encoder_tokens"] = row["encoder_tokens"][:, :length]
  np.testing.assert_allclose(f(params, batch)[1:], f(params, row), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(STYLES, "t5"))
def test_cached_decoding_is_uncached_decoding(style):
  params, batch = seq2seq.params_of(style), seq2seq.batch_of()
  begin, following = seq2seq.decoding(style)
  cache, parts = begin(params, batch, 9), []
  for start, stop in ((0, 4), (4, 5), (5, 7)):
    positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
    tokens = batch["tokens"][:, start:stop]
    readout, cache = following(params, tokens, positions, cache)
    parts.append(readout.logits())
  whole = seq2seq.predictor(style)(params, batch)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["t5", "transformer"], "transformer"))
def test_pairs_packed_in_a_row_are_the_pairs_alone(style):
  f, params = seq2seq.predictor(style), seq2seq.params_of(style)
  draw = np.random.default_rng(1)
  sizes = [(4, 3), (2, 4)]  # of source and target
  pairs = [
    {
      "encoder_tokens": jnp.asarray(draw.integers(0, 37, (1, s)), jnp.int32),
      "tokens": jnp.asarray(draw.integers(0, 37, (1, t)), jnp.int32),
    }
    for s, t in sizes
  ]
  packed = {
    key: jnp.pad(
      jnp.concatenate([pair[key] for pair in pairs], 1),
      ((0, 0), (0, 2)),
      constant_values=5,
    )
    for key in pairs[0]
  }
  for key, side in (("encoder_", 0), ("", 1)):
    lengths = [size[side] for size in sizes]
    packed[key + "segments"] = jnp.array(
      [np.repeat([1, 2, 0], [*lengths, 2])], jnp.int32
    )
    packed[key + "positions"] = jnp.array(
      [np.concatenate([np.arange(n) for n in (*lengths, 2)])], jnp.int32
    )
  together = f(params, packed)
  for pair, (first, last) in zip(pairs, ((0, 3), (3, 7)), strict=True):
    np.testing.assert_allclose(
      together[:, first:last], f(params, pair), **CLOSE
    )


HOW = dict(unroll=None, remat="dots", kernel="chunked")


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_how_it_is_computed_changes_neither_value_nor_gradient(style):
  a, da = gradient(style)
  b, db = gradient(style, **HOW)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), da, db)
  for x in jax.tree.leaves(da):
    assert np.isfinite(x).all() and np.any(x != 0)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["t5", "transformer"], "transformer"))
def test_bfloat16_stays_near_float32(style):
  params, batch = seq2seq.params_of(style), seq2seq.batch_of()
  a = seq2seq.predictor(style)(params, batch)
  b = seq2seq.predictor(style, dtype="bfloat16")(params, batch)
  assert b.dtype == jnp.float32
  assert np.max(np.abs(a - b)) < 0.15 * np.std(a)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "change"),
  sweep(
    [("t5", HOW), ("t5", {}), ("transformer", HOW), ("transformer", {})],
    ("t5", HOW),
  ),
)
def test_eight_devices_give_the_loss_and_gradient_of_one(style, change):
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=2, sequence=1, pipeline=1
  )
  model, params = seq2seq.build(style), seq2seq.params_of(style)
  batch = seq2seq.batch_of(8, 6, 6)

  def compiled(**change):
    score = tiny.score_of(seq2seq.build(style, **change))
    return jax.jit(
      jax.value_and_grad(lambda p, b: score(p, b, None)["loss"].sum)
    )

  one, d_one = compiled()(params, batch)
  for x in jax.tree.leaves(d_one):
    assert np.isfinite(x).all() and np.any(x != 0)
  boxed = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  cut = {
    k: jax.device_put(x, sharding.shardings("B.", x.shape, mesh))
    for k, x in batch.items()
  }
  laid = jax.device_put(params, sharding.of_tree(boxed, mesh))
  with jax.set_mesh(mesh):
    many, d_many = compiled(**change)(laid, cut)
  np.testing.assert_allclose(one, many, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    d_one,
    jax.device_get(d_many),
  )


@pytest.mark.slow
def test_fresh_scores_do_not_depend_on_what_multiplies_them():
  deviations = []
  for scale in (None, 1.0):
    model = seq2seq.build("t5", attention_scale=scale, dim=64, heads=4)
    batch = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), model.example())
    boxed = jax.jit(model.init)(jax.random.key(0), batch)
    params = nn.unbox(boxed)["params"]
    query = params["decoder"]["stack"]["cross_attention"]["query"]["w"]
    deviations.append(np.std(query) * (scale or 8**-0.5))
  np.testing.assert_allclose(*deviations, rtol=1e-5)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(position="rotary"), "sinusoidal"),
    (dict(relative_buckets=None), "relative_buckets"),
    (dict(relative_buckets=6), "multiple of 4"),
    (dict(relative_distance=2), "relative_distance"),
    (dict(norm_place="both"), "before"),
    (dict(tied=False), "tied=True"),
    (dict(start_token=37), "start_token"),
    (dict(dropout=1.0), "dropout"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    model = seq2seq.build("t5", **change)
    batch = seq2seq.batch_of()
    boxed = jax.eval_shape(model.init, jax.random.key(0), batch)
    jax.eval_shape(model.apply, nn.unbox(boxed), batch)


# The sums of the sizes of the published tensors; of the Transformer, those of
# its layers and one table, where implementations add norms after the stacks.
PUBLISHED = {
  "t5:small": 60_506_624,
  "t5:base": 222_903_552,
  "t5:large": 737_668_096,
  "t5:3b": 2_851_598_336,
  "t5:v1_1_small": 76_961_152,
  "t5:v1_1_base": 247_577_856,
  "t5:v1_1_large": 783_150_080,
  "t5:v1_1_xl": 2_849_757_184,
  "t5:v1_1_xxl": 11_135_332_352,
  "transformer:base": 63_082_496,
  "transformer:big": 214_245_376,
}


def count(**model) -> int:
  made = encoder_decoder(**model)
  boxed = jax.eval_shape(made.init, jax.random.key(0), made.example())
  return tree.count(nn.unbox(boxed["params"]))


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_are_as_many_as_published(preset):
  assert written.count_of(preset) == PUBLISHED[preset]


def test_every_preset_is_held_against_a_published_count():
  presets = {f"t5:{size}" for size in t5.SIZES}
  presets |= {f"transformer:{size}" for size in transformer.SIZES}
  assert presets == set(PUBLISHED)


def test_a_translator_of_opus_has_the_published_count():
  """Less its fixed positions, 512 each side, and with its bias of the logits,
  which transformers keeps apart from the parameters."""
  model = compute.keywords(transformer.get_config("base").to_dict())
  model |= dict(vocab=58_101, activation="silu", head_bias=True)
  del model["kind"]
  assert count(**model) == 74_410_496 - 2 * 512 * 512 + 58_101
