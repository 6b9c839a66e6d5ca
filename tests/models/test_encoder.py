"""An encoder reads both ways, no padding, and predicts where it is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, tree
from aigc_jax.models import encoder
from aigc_jax.objectives import masked, tokens
from aigc_jax.presets import bert, roberta
from aigc_jax.sampling.decodes import check_decodes
from tests import kinds
from tests.golden import written

NAME = "encoder of pairs"
CLOSE = dict(rtol=2e-4, atol=2e-5)


RUN = jax.jit(kinds.build(NAME).apply)


def encode(batch):
  return RUN({"params": kinds.params_of(NAME)}, batch)


@pytest.mark.slow
def test_every_position_is_read_by_every_other():
  batch = dict(tokens=kinds.masked_batch(1, 7)["tokens"])
  whole = encode(batch).hidden_BTD
  for t in (0, 6):
    other = batch["tokens"].at[:, t].set((batch["tokens"][:, t] + 1) % 37)
    changed = encode(dict(tokens=other)).hidden_BTD
    assert np.all(np.any(changed != whole, axis=-1))


@pytest.mark.slow
def test_junk_in_the_padding_changes_nothing():
  """The same as without it, and as a shorter row of its own."""
  batch = kinds.masked_batch(3, 9)
  real = batch["segments"] > 0
  junk = dict(batch, tokens=jnp.where(real, batch["tokens"], 31))
  a, b = encode(batch), encode(junk)
  np.testing.assert_array_equal(a.hidden_BTD[real], b.hidden_BTD[real])
  np.testing.assert_array_equal(a.readout.logits(), b.readout.logits())
  np.testing.assert_array_equal(a.pooled_BD, b.pooled_BD)
  n = int(real[1].sum())
  alone = encode({k: batch[k][1:2, :n] for k in ("tokens", "types")})
  np.testing.assert_allclose(alone.hidden_BTD[0], a.hidden_BTD[1, :n], **CLOSE)


@pytest.mark.slow
def test_texts_packed_in_a_row_are_the_texts_alone():
  tokens = kinds.masked_batch(1, 9)["tokens"]
  packed = dict(
    tokens=tokens,
    segments=jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]]),
    positions=jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
  )
  alone = encode(dict(tokens=tokens[:, 4:]))
  np.testing.assert_allclose(
    encode(packed).hidden_BTD[:, 4:], alone.hidden_BTD, **CLOSE
  )


@pytest.mark.slow
def test_predictions_are_those_of_the_positions_that_are_asked():
  batch = kinds.masked_batch(2, 7)
  asked = encode(batch).readout.logits()
  every = encode({k: x for k, x in batch.items() if k != "at"})
  at = batch["at"][..., None]
  np.testing.assert_allclose(
    asked, jnp.take_along_axis(every.readout.logits(), at, axis=1), **CLOSE
  )


@pytest.mark.slow
def test_no_other_position_has_logits():
  batch = kinds.masked_batch(4, 16)
  f = jax.jit(lambda p: kinds.score_of("encoder")(p, batch)["loss"].sum)
  text = jax.jit(jax.grad(f)).lower(kinds.params_of("encoder")).as_text()
  assert "x37x" in text and "x16x37x" not in text and "64x37x" not in text


@pytest.mark.slow
def test_the_masked_loss_is_the_dense_one_and_counts_right_guesses():
  batch, params = kinds.masked_batch(3, 8), kinds.params_of(NAME)
  model = kinds.build(NAME)

  def dense(p):
    found = model.apply({"params": p}, batch)
    w, pick = batch["weights"], batch["targets"][..., None]
    z = jax.nn.log_softmax(found.readout.logits())
    nll = -jnp.take_along_axis(z, pick, -1)[..., 0]
    follows = jax.nn.log_softmax(found.follows_BC)
    rows = jnp.arange(3)
    pairs = -jnp.sum(follows[rows, batch["follows"]])
    right = jnp.argmax(z, -1) == batch["targets"]
    return jnp.sum(nll * w) + 3 * pairs, (jnp.sum(nll * w), jnp.sum(right * w))

  def chunked(p):
    means = masked(
      lambda b: model.apply({"params": p}, b), batch, chunk=4,
      next_sentence=True,
    )  # fmt: skip
    return means["loss"].sum, means

  (a, (nll, right)), da = jax.jit(jax.value_and_grad(dense, has_aux=True))(
    params
  )
  (b, means), db = jax.jit(jax.value_and_grad(chunked, has_aux=True))(params)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(nll, means["nll"].sum, rtol=1e-5)
  assert right == means["accuracy"].sum
  assert means["next_nll"].weight == 3
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), da, db)


@pytest.mark.slow
def test_a_row_that_pads_a_held_out_set_is_no_pair():
  """It has no text; its `follows` is drawn as that of any other row."""
  batch, model = kinds.masked_batch(3, 8), kinds.build(NAME)
  params = kinds.params_of(NAME)
  empty = dict.fromkeys(("segments", "weights", "at", "targets"), 0)

  def measured(batch):
    found = masked(
      lambda b: model.apply({"params": params}, b), batch, next_sentence=True
    )
    return {name: (m.sum, m.weight) for name, m in found.items()}

  padded = {
    name: jnp.concatenate([x, empty.get(name, 1) * jnp.ones_like(x)])
    for name, x in batch.items()
  }
  whole, found = measured(batch), measured(padded)
  assert found["next_accuracy"][1] == 3
  for name, pair in whole.items():
    np.testing.assert_allclose(found[name], pair, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_rows_of_positions_before_the_first_are_never_read():
  batch, params = kinds.masked_batch(2, 7), dict(kinds.params_of("encoder"))
  _, gradient = kinds.gradient_of("encoder")(params, batch)
  rows = np.any(np.asarray(gradient["position"]["table"]) != 0, axis=-1)
  assert rows.tolist() == [False] * 2 + [True] * 7 + [False] * 12


def test_an_encoder_writes_no_text_and_that_is_refused_by_what_it_can_do():
  with pytest.raises(errors.BadConfig, match="generate makes tokens one after"):
    check_decodes(kinds.build("encoder"), "generate")


@pytest.mark.slow
def test_a_model_without_the_head_that_is_asked_for_is_refused():
  batch = kinds.masked_batch(1, 5)

  def predict(**changes):
    model = kinds.build("encoder", **changes)
    params = dict(kinds.params_of("encoder"))
    if not changes.get("token_head", True):
      params.pop("head")
    return lambda b: model.apply({"params": params}, b)

  for objective in (masked, tokens):
    with pytest.raises(errors.BadConfig, match="model.token_head=True"):
      more = dict(z_loss=0.0) if objective is tokens else {}
      objective(predict(token_head=False), batch, chunk=None, **more)
  with pytest.raises(errors.BadConfig, match="model.next_sentence=True"):
    masked(predict(), batch, next_sentence=True)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(heads=5), "20 and 25"),
    (dict(next_sentence=True), "model.pooler=True"),
    (dict(position_length=0), "position_length"),
    (dict(types=-1), "types"),
    (dict(dropout=1.0), "dropout"),
    (dict(dtype="float16"), "bfloat16"),
    (dict(activation="swish"), "silu"),
    (dict(kernel="cudnn"), "NVIDIA"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  model_keys = {k: v for k, v in kinds.ENCODER.items() if k != "kind"}
  with pytest.raises(errors.BadConfig, match=word):
    model = encoder(**model_keys | change)
    jax.eval_shape(
      lambda: model.apply(
        {"params": kinds.params_of("encoder")}, kinds.masked_batch(1, 5)
      )
    )


# Sums of the sizes of the tensors of transformers' models.
PRESETS = {
  "bert:base": 110_106_428,
  "bert:base_cased": 108_932_934,
  "bert:large": 336_226_108,
  "bert:large_cased": 334_661_958,
  "roberta:base": 124_697_433,
  "roberta:large": 355_412_057,
}
BARE = dict(pooler=False, next_sentence=False)
HEADLESS = BARE | dict(token_head=False)


def count(preset: str, **changes) -> int:
  family, size = preset.split(":")
  config = {"bert": bert, "roberta": roberta}[family].get_config(size)
  keywords = config.model.to_dict() | changes
  assert keywords.pop("kind") == "encoder"
  model = encoder(**keywords)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return tree.count(nn.unbox(boxed)["params"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_published_count(preset):
  assert written.count_of(preset) == PRESETS[preset]


def test_every_preset_is_held_against_a_published_count():
  names = {f"bert:{size}" for size in bert.SIZES}
  assert names | {f"roberta:{size}" for size in roberta.SIZES} == set(PRESETS)


@pytest.mark.parametrize(
  ("preset", "changes", "expected"),
  [
    ("bert:base", BARE, 109_514_298),
    ("bert:base", HEADLESS, 108_891_648),
    ("bert:base", HEADLESS | dict(pooler=True), 109_482_240),
    ("bert:large", BARE, 335_174_458),
    ("bert:large_cased", HEADLESS | dict(pooler=True), 333_579_264),
    ("roberta:base", HEADLESS | dict(pooler=True), 124_645_632),
    ("roberta:large", HEADLESS, 354_310_144),
    # DistilBERT
    ("bert:base", BARE | dict(layers=6, types=0), 66_985_530),
  ],
)
def test_with_other_heads_too(preset, changes, expected):
  assert count(preset, **changes) == expected
