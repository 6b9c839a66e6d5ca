"""Priors over codes: who sees what, which ids there are, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.models import MODELS
from aigc_jax.models.image_tokens import ImageCodes
from aigc_jax.objectives.image_tokens import hidden_places, image_tokens
from aigc_jax.objectives.labels import NO_LABEL, NO_TOKEN
from aigc_jax.run.build import scorer
from aigc_jax.trainer.state import Fixed
from tests import diffusion, kinds
from tests.sweep import sweep

CAUSAL, MASKED = "image tokens", "image tokens masked"
CAPTIONS = "image tokens of captions"
CODES = jnp.asarray(np.random.default_rng(0).integers(0, 12, (2, 9)))
HIDDEN = jnp.zeros((2, 9), bool).at[:, 2:5].set(True)


@functools.cache
def sayer(name: str):
  run = functools.partial(
    kinds.build(name).apply, kinds.variables_of(name), role="prior"
  )
  return jax.jit(lambda batch: run(batch).logits())


def said(name: str, codes=CODES, labels=(1, 2), hidden=HIDDEN):
  """Logits (B, T, V) of the codes."""
  batch = dict(codes=codes, labels=jnp.asarray(labels), hidden=hidden)
  return np.asarray(sayer(name)(batch))


def with_another(t: int):
  return CODES.at[:, t].set((CODES[:, t] + 1) % 12)


@pytest.mark.slow
def test_a_code_never_changes_what_is_said_of_those_before_it_or_of_itself():
  whole = said(CAUSAL)
  assert whole.shape == (2, 9, 12)
  for t in (0, 4, 7):
    other = said(CAUSAL, with_another(t))
    np.testing.assert_array_equal(other[:, : t + 1], whole[:, : t + 1])
    assert np.all(np.any(other[:, t + 1] != whole[:, t + 1], axis=-1))


@pytest.mark.slow
def test_a_hidden_code_says_nothing_and_every_other_one_something():
  whole = said(MASKED)
  for t in (2, 4):
    np.testing.assert_array_equal(said(MASKED, with_another(t)), whole)
  for t in (0, 8):
    other = said(MASKED, with_another(t))
    assert np.all(np.any(other != whole, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep([CAUSAL, MASKED], CAUSAL))
def test_labels_are_told_and_whatever_is_beyond_them_is_none(name):
  one, two = said(name), said(name, labels=(3, 2))
  assert np.all(np.any(one[0] != two[0], axis=-1))
  np.testing.assert_array_equal(one[1], two[1])
  none, also = (said(name, labels=(k, k)) for k in (5, NO_LABEL))
  np.testing.assert_array_equal(none, also)
  assert np.any(none != said(name, labels=(4, 4)))


def test_codes_labels_none_and_hidden_are_ids_of_their_own():
  model = kinds.build(MASKED)
  labels = model.lead(jnp.arange(7))[:, 0].tolist()
  assert labels == [12, 13, 14, 15, 16, 17, 17]
  assert (model.none, model.hidden) == (17, 18)
  asked = model.asked(jnp.asarray([0, 9]), CODES, HIDDEN)
  assert asked["tokens"][:, 0].tolist() == [12, 17]
  assert (asked["tokens"][:, 3:6] == 18).all()
  np.testing.assert_array_equal(asked["tokens"][:, 6:], CODES[:, 5:])
  # The last place of a causal one is asked for, not told.
  asked = kinds.build(CAUSAL).asked(jnp.zeros(2, int), CODES, None)
  np.testing.assert_array_equal(asked["tokens"][:, 1:], CODES[:, :-1])


def test_a_caption_goes_before_the_codes_and_nothing_behind_its_end_is_read():
  model = kinds.build(CAPTIONS)
  told = jnp.asarray([[3, 36, 7, 36], [4, 5, 6, 36], [NO_TOKEN] * 4])
  lead = np.asarray(model.lead(told))
  assert lead.shape == (3, 19) and model.none == 12 + 37
  assert lead[0].tolist() == [15, 48] + [49] * 17
  assert lead[1].tolist() == [16, 17, 18, 48] + [49] * 15
  assert (lead[2] == 49).all()
  tokens = model.asked(told[:2], CODES, None)["tokens"]
  np.testing.assert_array_equal(tokens[:, :19], lead[:2])
  np.testing.assert_array_equal(tokens[:, 19:], CODES[:, :-1])
  masked = kinds.build(f"{CAPTIONS} masked").asked(told[:2], CODES, HIDDEN)
  np.testing.assert_array_equal(masked["tokens"][:, :19], lead[:2])
  assert masked["at"][0].tolist() == list(range(19, 28))


@functools.cache
def captioned(text_weight: float, label_dropout: float = 0.0):
  """The means of a batch with captions, and the batch."""
  batch = kinds.KINDS[CAPTIONS].batch(3, 9)
  variables = kinds.variables_of(CAPTIONS)

  def predict(batch, role):
    return kinds.build(CAPTIONS).apply(variables, batch, role=role)

  predict.trains = True
  run = functools.partial(
    image_tokens, predict, text_weight=text_weight, label_dropout=label_dropout
  )
  return jax.jit(run)(batch), batch


@pytest.mark.slow
def test_the_loss_of_a_caption_is_the_mean_of_its_tokens_beside_the_codes():
  (means, batch), (codes, _) = captioned(0.125), captioned(0.0)
  model, variables = kinds.build(CAPTIONS), kinds.variables_of(CAPTIONS)
  coded = model.apply(variables, batch, role="vq").codes_BT
  ids = model.asked(batch["tokens"], coded, None)
  prior = {"params": variables["params"]["prior"]}
  output = model.prior.apply(prior, ids).logits()
  logp = jax.nn.log_softmax(output[:, :, 12 : 12 + 37])
  rows = []
  for row, tokens in enumerate(np.asarray(batch["tokens"])):
    last = int(np.argmax(tokens == 36))
    rows.append(-np.mean([logp[row, t, tokens[t + 1]] for t in range(last)]))
  w = np.asarray(batch["weights"])
  assert float(means["text_nll"].value()) == pytest.approx(
    np.average(rows, weights=w), rel=1e-4
  )
  whole = 0.875 * float(codes["loss"].sum) + 0.125 * np.dot(rows, w)
  assert float(means["loss"].sum) == pytest.approx(whole, rel=1e-4)
  np.testing.assert_allclose(means["nll"].sum, codes["nll"].sum, rtol=1e-5)


@pytest.mark.slow
def test_who_is_told_no_caption_has_none_to_say():
  means, _ = captioned(0.125, label_dropout=1.0)
  assert float(means["text_nll"].weight) == 0
  assert float(means["loss"].sum) == pytest.approx(
    0.875 * float(means["nll"].sum), rel=1e-5
  )


def test_only_a_causal_prior_that_is_told_captions_has_a_loss_of_them():
  for name, masked in ((CAUSAL, False), (f"{CAPTIONS} masked", True)):
    coded = ImageCodes(CODES, masked)
    with pytest.raises(BadConfig, match="text_weight=0.0"):
      image_tokens(
        lambda batch, role, coded=coded: coded,
        kinds.KINDS[name].batch(2, 9),
        text_weight=0.5,
      )


def test_in_training_many_codes_are_hidden_and_in_evaluation_any_number():
  keys = diffusion.keys_of(4000)
  trained, even = (hidden_places(keys, 16, t).sum(1) for t in (True, False))
  assert int(trained.min()) >= 1 and int(even.min()) == 1
  assert int(trained.max()) == int(even.max()) == 16
  # The mean of cos(pi u / 2) is 2 / pi; half a code is what rounding up adds.
  assert abs(float(trained.mean()) - (16 * 2 / np.pi + 0.5)) < 0.3
  counts = np.bincount(np.asarray(even), minlength=17)[1:]
  assert abs(counts - 250).max() < 75
  places = hidden_places(keys, 16, False).mean(0)
  assert abs(places - 17 / 32).max() < 0.05


class Even:
  """A prior that says the same of all codes, whatever it is asked."""

  def __init__(self, masked: bool):
    self.masked, self.asked = masked, []
    self.trains = True

  def __call__(self, batch, role):
    model = kinds.build(MASKED if self.masked else CAUSAL)
    variables = kinds.variables_of(MASKED if self.masked else CAUSAL)
    if role == "prior":
      self.asked.append(batch)
    found = model.apply(variables, batch, role=role)
    if role == "prior":
      zeros = jnp.zeros_like(found.features_BTD)
      bias = None if found.bias_V is None else jnp.zeros_like(found.bias_V)
      found = found.replace(features_BTD=zeros, bias_V=bias)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_prior_that_knows_nothing_costs_the_log_of_the_number_of_codes(
  masked,
):
  predict = Even(masked)
  means = image_tokens(predict, diffusion.batch_of(), label_dropout=1.0)
  for name, value in (("nll", np.log(12)), ("bits", np.log2(12))):
    assert float(means[name].value()) == pytest.approx(value, rel=1e-5)
  assert float(means["loss"].weight) == 7  # an image each, but the padded one
  assert (predict.asked[0]["labels"] == NO_LABEL).all()


@pytest.mark.slow
def test_what_makes_the_codes_reports_nothing_that_could_move_its_codebook():
  model, variables = kinds.build(CAUSAL), kinds.variables_of(CAUSAL)
  score = scorer(model, image_tokens)
  means = score(
    variables["params"], diffusion.batch_of(), jax.random.key(0),
    fixed=Fixed(None, variables["stats"]),
  )  # fmt: skip
  assert "reports" not in means


VQ, PRIOR = kinds.VQ, kinds.DECODER
PARTS = dict(vq=VQ, prior=PRIOR)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(parts=dict(vq=VQ)), "expected vq and prior"),
    (dict(parts=PARTS | dict(vq=PRIOR)), "makes no codes of images: take a vq"),
    (dict(order="masked"), "order='masked' takes 'encoder'"),
    (dict(order="random"), "causal"),
    (
      dict(parts=PARTS | dict(vq=VQ | dict(codes=64))),
      r"64 codes \+ 5 labels \+ 1 for none: "
      "--config.model.parts.prior.vocab=70",
    ),
    (dict(classes=7), "--config.model.parts.prior.vocab=20"),
    (
      dict(parts=PARTS | dict(prior=PRIOR | dict(position_length=8))),
      "9 codes.*--config.model.parts.prior.position_length=9",
    ),
    (
      dict(order="masked", parts=PARTS | dict(prior=kinds.PRIOR | dict(
        vocab=18
      ))),
      r"1 for none \+ 1 that hides a code: .*vocab=19",
    ),
    (dict(classes=0), "classes"),
    (dict(vocab=37), "labels, or captions"),
    (dict(classes=0, vocab=37, text_length=9), "text_end=None"),
    (
      dict(classes=0, vocab=37, text_length=9, text_end=37),
      "text_end=37.*below model.vocab=37",
    ),
    (
      dict(classes=0, vocab=37, text_length=9, text_end=0),
      r"12 codes \+ 37 of text \+ 1 for none: .*vocab=50",
    ),
    (
      dict(
        classes=0, vocab=37, text_length=9, text_end=0,
        parts=PARTS | dict(prior=PRIOR | dict(vocab=50)),
      ),
      "its caption goes before them: .*position_length=17",
    ),
  ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_with_the_way_out(change, word):
  keys = dict(classes=5, parts=PARTS) | change
  with pytest.raises(BadConfig, match=word):
    MODELS["image_tokens"](**keys)


def test_an_objective_that_asks_for_other_parts_is_refused():
  model, key = kinds.build(CAUSAL), jax.random.key(0)
  with pytest.raises(BadConfig, match="'student'.*kind=image_tokens"):
    jax.eval_shape(
      lambda batch: model.init(key, batch, "student"), diffusion.batch_of()
    )
