"""The adapter answers the harness's requests (extra [lm_eval])."""

import types

import pytest

pytest.importorskip("lm_eval", reason="needs the extra [lm_eval]")
from lm_eval.api.registry import get_model  # noqa: E402

from aigc_jax import lm_eval  # noqa: E402
from aigc_jax.errors import BadConfig  # noqa: E402
from aigc_jax.evaluators.likelihood import Scorer  # noqa: E402
from aigc_jax.evaluators.lm_eval import Model, sampling_of  # noqa: E402
from aigc_jax.sampling.logits import Sampling  # noqa: E402
from tests.test_generate import loaded  # noqa: F401, E402


@pytest.fixture(scope="module")
def model(loaded):  # noqa: F811
  return Model(
    lambda batch: Scorer(
      loaded.model, loaded.params, loaded.tokenizer, length=32, batch=batch
    ),
    lambda how, seed: loaded.engine(how, seed=seed, group=8),
    name="tiny", batch=3, seed=0,
  )  # fmt: skip


def requests(*args):
  return [types.SimpleNamespace(args=a) for a in args]


@pytest.mark.slow
def test_likelihoods_are_those_of_the_scorer(model):
  pairs = [("the cat", " sat"), ("", "dog"), ("a ", "b")]
  found = model.loglikelihood(requests(*pairs))
  for (logprob, greedy), one in zip(
    found, model.scorer.pairs(pairs), strict=True
  ):
    assert (logprob, greedy) == (one.logprob, one.greedy)
  (rolled,) = model.loglikelihood_rolling(requests(("dog",)))
  assert rolled == pytest.approx(found[1][0])


@pytest.mark.slow
def test_texts_are_written_by_their_own_settings_in_order(model):
  greedy = {"until": ["\n"], "max_gen_toks": 6}
  drawn = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 3}
  asked = [("ab", greedy), ("x", drawn), ("a" * 60, greedy), ("ab", greedy)]
  found = model.generate_until(requests(*asked))
  assert found[0] == found[3] and len(found) == 4
  alone = model.generate_until(requests(*asked[2:3]))
  assert alone == found[2:3]


def test_settings_mean_what_the_harness_means():
  assert sampling_of({}) == Sampling()
  assert sampling_of({"do_sample": False, "temperature": 0.7}) == Sampling()
  assert sampling_of({"temperature": 0.7}) == Sampling(temperature=0.7)
  assert sampling_of({"do_sample": True}) == Sampling(temperature=1.0)
  with pytest.raises(BadConfig, match="num_beams"):
    sampling_of({"num_beams": 4})


def test_a_model_argument_that_is_unknown_is_refused_by_name():
  lm_eval.register()
  made = get_model("aigc_jax")
  with pytest.raises(BadConfig, match="did you mean 'workdir'.*batch, length"):
    made(workdr="x", workdir="y")
  with pytest.raises(BadConfig, match="batch=two: expected a number"):
    made(workdir="y", batch="two")
