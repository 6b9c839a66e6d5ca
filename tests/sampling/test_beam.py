"""Beam search finds the likeliest, of decoders and encoder-decoders alike."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.sampling.beam import Beams, BeamSearch
from aigc_jax.sampling.decode import Engine, Row
from aigc_jax.sampling.logits import Sampling
from tests import seq2seq, tiny
from tests.sweep import sweep

PROMPTS = ((3, 1, 4), (5, 9, 2, 6, 5, 3), (7,))
START = 11


@functools.cache
def parts(style: str, unroll=1, **changes):
  if style in tiny.STYLES:
    return tiny.build(style, unroll=unroll, **changes), tiny.params_of(style)
  model = seq2seq.build(style, unroll=unroll or None, **changes)
  return model, seq2seq.params_of(style)


def search(style, width, stop_ids=(), unroll=1, **penalty):
  model, params = parts(style, unroll)
  return BeamSearch(
    model, params, beams=Beams(width, **penalty), stop_ids=stop_ids,
    positions=0, unrolled=unroll == 0, start=START,
  )  # fmt: skip


@functools.cache
def log_probs(style: str):
  """(prompt, tokens) -> the log probability of each token, uncached."""
  model, params = parts(style)
  f = jax.jit(lambda b: model.apply({"params": params}, b).logits())

  def of(prompt, tokens_NT):
    N, T = tokens_NT.shape
    source = np.tile(prompt, (N, 1)).astype(np.int32)
    if model.source:
      start = np.full((N, 1), START, np.int32)
      written = np.concatenate([start, tokens_NT[:, :-1]], 1)
      logits = f({"encoder_tokens": source, "tokens": written})
    else:
      whole = np.concatenate([source, tokens_NT[:, :-1]], 1)
      logits = f({"tokens": whole})[:, len(prompt) - 1 :]
    logp = jax.nn.log_softmax(logits, -1)
    return np.take_along_axis(np.asarray(logp), tokens_NT[..., None], -1)[
      ..., 0
    ]

  return of


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["t5", "marian", "llama"], "t5"))
def test_one_beam_that_never_ends_is_greedy_decoding(style):
  model, params = parts(style)
  engine = Engine(
    model, params, sampling=Sampling(), stop_ids=(), positions=0,
    unrolled=False, group=8, seed=0, start=START,
  )  # fmt: skip
  session, greedy = engine.start([Row(p) for p in PROMPTS], 7), [[], [], []]
  while not session.done:
    for row, new in zip(greedy, session.advance(8), strict=True):
      row += new.tolist()
  found = search(style, 1)(PROMPTS, 7)
  assert [beams[0][1] for beams in found] == greedy


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["t5", "llama"], "llama"))
def test_beams_as_wide_as_all_there_is_find_the_likeliest_of_all(style):
  """Of all that ends with a stop token or after two tokens."""
  stop, penalty = 4, 0.7
  tokens_NT = np.array(list(itertools.product(range(37), range(37))))
  for prompt, beams in zip(
    PROMPTS,
    search(style, 37, (stop,), length_penalty=penalty)(PROMPTS, 2),
    strict=True,
  ):
    logp_NT = log_probs(style)(prompt, tokens_NT)
    worth = {}
    for tokens, logp in zip(tokens_NT.tolist(), logp_NT, strict=True):
      n = 1 if tokens[0] == stop else 2
      worth[tuple(tokens[:n])] = logp[:n].sum() / n**penalty
    best = max(worth, key=worth.get)
    assert beams[0][1] == list(best)
    for score, found in beams:
      np.testing.assert_allclose(score, worth[tuple(found)], rtol=1e-4)
    assert [s for s, _ in beams] == sorted((s for s, _ in beams), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["marian", "llama"], "llama"))
def test_prompts_beside_it_and_layers_apart_change_no_beam(style):
  together = search(style, 3, (2, 20))(PROMPTS, 6)
  apart = search(style, 3, (2, 20), unroll=0)
  for prompt, beams in zip(PROMPTS, together, strict=True):
    (alone,) = apart([prompt], 6)
    assert [t for _, t in alone] == [t for _, t in beams]
    np.testing.assert_allclose(
      [s for s, _ in alone], [s for s, _ in beams], rtol=1e-4
    )


@pytest.mark.slow
def test_a_penalty_makes_continuations_longer():
  stops = tuple(range(12))
  short, long = (
    search("t5", 4, stops, length_penalty=penalty)(PROMPTS, 12)
    for penalty in (-2.0, 6.0)
  )
  lengths = [
    sum(len(beams[0][1]) for beams in found) for found in (short, long)
  ]
  assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
  ("beams", "word"),
  [
    (Beams(0), "beams=0"),
    (Beams(38), "1 to 37"),
    (Beams(2, float("nan")), "length_penalty"),
  ],
)
def test_beams_that_cannot_be_are_refused(beams, word):
  with pytest.raises(BadConfig, match=word):
    beams.check(37)


@pytest.mark.slow
def test_a_source_needs_a_token_to_start_with():
  model, params = parts("t5")
  with pytest.raises(BadConfig, match="start"):
    BeamSearch(
      model, params, beams=Beams(2), stop_ids=(), positions=0, unrolled=False
    )


@pytest.mark.slow
def test_positions_are_a_limit_for_beams_too():
  model, params = parts("gpt2")
  limited = BeamSearch(
    model, params, beams=Beams(2), stop_ids=(), positions=19, unrolled=False
  )
  assert len(limited([(1, 2, 3)], 16)[0][0][1]) == 16
  with pytest.raises(BadConfig, match="19"):
    limited([(1, 2, 3)], 17)
  assert jnp.isfinite(limited([(1, 2, 3)], 1)[0][0][0])
