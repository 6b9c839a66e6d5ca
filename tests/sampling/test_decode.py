"""Decoding with a cache is decoding without one, whatever lies beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.errors import BadConfig, NonFinite
from aigc_jax.sampling.beam import Beams, BeamSearch
from aigc_jax.sampling.decode import Engine, Row, bucket
from aigc_jax.sampling.logits import Sampling
from tests import tiny
from tests.sweep import slow, sweep

PROMPTS = ((5, 1, 30), (7,), (2, 2, 9, 11, 36, 0), (4, 8))
SAMPLED = Sampling(temperature=0.9, top_k=20, top_p=0.95)


def decode(engine, rows, max_tokens, steps=8):
  """The tokens of each row."""
  session = engine.start(rows, max_tokens)
  out = [[] for _ in rows]
  while not session.done:
    for found, new in zip(out, session.advance(steps), strict=True):
      found += new.tolist()
  return out


def uncached(style, prompt, n):
  """n greedy tokens, the whole row computed anew for each of them."""
  row = list(prompt)
  for _ in range(n):
    padded = np.array([row + [0] * (18 - len(row))])
    logits = np.asarray(tiny.logits(style, padded))
    row.append(int(logits[0, len(row) - 1].argmax()))
  return row[len(prompt) :]


@pytest.mark.parametrize("style", sweep(["llama", "gpt2", "gemma"], "llama"))
def test_greedy_tokens_are_those_of_the_uncached_model(style, engine):
  found = decode(engine(style), [Row(p) for p in PROMPTS], 9)
  assert found == [uncached(style, p, 9) for p in PROMPTS]


@pytest.mark.slow
def test_layers_in_a_loop_and_unrolled_give_the_same(engine):
  rows = [Row(p) for p in PROMPTS]
  unrolled = decode(engine("llama", unroll=0), rows, 9)
  assert unrolled == decode(engine("llama"), rows, 9)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), slow(SAMPLED)])
def test_a_row_does_not_depend_on_the_rows_beside_it(sampling, engine):
  e = engine("llama", sampling)
  together = decode(e, [Row(p) for p in PROMPTS], 12)
  assert together == [decode(e, [Row(p)], 12)[0] for p in PROMPTS]
  back = decode(e, [Row(p) for p in PROMPTS[::-1]], 12)
  assert together == back[::-1]


@pytest.mark.slow
def test_steps_per_dispatch_and_longer_buckets_change_nothing(engine):
  e = engine("llama", SAMPLED)
  row = [Row((5, 1, 30))]
  whole = decode(e, row, 12)
  assert decode(e, row, 12, steps=3) == whole
  assert [r[:12] for r in decode(e, row, 40)] == whole
  long = [Row((5, 1, 30)), Row(tuple(range(30)))]
  assert decode(e, long, 12)[:1] == whole


@pytest.mark.slow
def test_samples_of_a_prompt_differ_and_a_seed_gives_them_again(engine):
  rows = [Row((5, 1, 30), sample) for sample in range(3)]
  one = decode(engine("llama", SAMPLED), rows, 10)
  assert len({tuple(r) for r in one}) == 3
  assert decode(engine("llama", SAMPLED), rows[1:2], 10) == one[1:2]
  assert decode(engine("llama", SAMPLED, seed=1), rows, 10) != one


@pytest.mark.slow
def test_a_row_ends_with_a_stop_id_and_the_others_go_on(engine):
  rows = [Row(p) for p in PROMPTS]
  free = decode(engine("llama"), rows, 12)
  stop = free[0][2]
  found = decode(engine("llama", stop_ids=(stop,)), rows, 12)
  for whole, cut in zip(free, found, strict=True):
    end = whole.index(stop) + 1 if stop in whole else len(whole)
    assert cut == whole[:end]
  assert len(found[0]) <= 3


def test_decoding_ends_when_all_rows_have():
  e = Engine(
    tiny.build("llama"), tiny.params_of("llama"),
    sampling=Sampling(), stop_ids=range(37), positions=0, unrolled=False,
    group=8, seed=0,
  )  # fmt: skip
  assert [len(r) for r in decode(e, [Row((1,)), Row((2, 3))], 50)] == [1, 1]
  assert e.compiles == 1  # the prompt alone


def test_rows_stopped_from_outside_end_and_the_others_do_not(engine):
  e = engine("llama")
  rows = [Row(p) for p in PROMPTS]
  free = decode(e, rows, 9)
  session = e.start(rows, 9)
  assert [n.tolist() for n in session.advance(1)] == [r[:1] for r in free]
  session.stop([0, 2])
  new = [n.tolist() for n in session.advance(8)]
  assert new[0] == new[2] == []
  assert new[1] == free[1][1:9] and new[3] == free[3][1:9]


@pytest.mark.slow
def test_a_penalty_is_that_of_the_whole_row(engine):
  """Strong enough, no token comes twice, nor one of the prompt."""
  prompt = (5, 1, 30)
  e = engine("llama", Sampling(repetition_penalty=1e6))
  plain = decode(engine("llama"), [Row(prompt)], 14)[0]
  found = decode(e, [Row(prompt), Row((1,))], 14)[0]
  logits = np.asarray(tiny.logits("llama", jnp.array([[*prompt, *found]])))[0]
  for i, token in enumerate(found):
    row = logits[len(prompt) + i - 1].copy()
    seen = np.unique((*prompt, *found[:i]))
    row[seen] = np.where(row[seen] < 0, row[seen] * 1e6, row[seen] / 1e6)
    assert token == row.argmax()
  assert found != plain


@pytest.mark.slow
def test_one_compilation_for_each_bucket():
  e = Engine(
    tiny.build("llama"), tiny.params_of("llama"),
    sampling=SAMPLED, stop_ids=(), positions=0, unrolled=False, group=8, seed=0,
  )  # fmt: skip
  decode(e, [Row((1, 2, 3))], 8)
  assert e.compiles == 2  # one for prompts, one for tokens
  for prompt in ((3,), (1,) * 7, (9, 9)):
    decode(e, [Row(prompt)], 9)
    session = e.start([Row(prompt)], 9)
    session.advance(1)
    session.stop([0])
    session.advance(1)
  assert e.compiles == 2
  decode(e, [Row((1,) * 17)], 4)  # a longer prompt, and a longer row
  assert e.compiles == 4


def test_buckets_hold_what_they_must_and_little_more():
  sizes = [bucket(n) for n in range(1, 3000)]
  assert all(b >= n for n, b in enumerate(sizes, 1))
  assert all(b < 1.51 * n for n, b in enumerate(sizes, 1) if n > 16)
  assert len(set(sizes)) < 20
  assert [bucket(n, 1) for n in range(1, 9)] == [1, 2, 3, 4, 6, 6, 8, 8]


@pytest.mark.slow
def test_the_positions_of_the_model_are_a_limit(engine):
  e = engine("gpt2")
  assert len(decode(e, [Row((1, 2, 3))], 16)[0]) == 16
  with pytest.raises(BadConfig, match="19 positions .max_tokens=16 fits"):
    e.start([Row((1, 2, 3))], 17)
  with pytest.raises(BadConfig, match="shorten the prompt"):
    e.start([Row((1,) * 19)], 1)
  with pytest.raises(BadConfig, match="max_tokens=0"):
    e.start([Row((1,))], 0)


def test_predictions_that_are_not_finite_are_refused():
  bad = jax.tree.map(lambda x: np.full_like(x, np.nan), tiny.params_of("llama"))
  e = Engine(
    tiny.build("llama"), bad, sampling=Sampling(), stop_ids=(), positions=0,
    unrolled=False, group=4, seed=0,
  )  # fmt: skip
  with pytest.raises(NonFinite):
    e.start([Row((1,))], 3)


@pytest.mark.slow
def test_what_is_not_finite_later_on_is_refused_too():
  """As of a position, or a token, that has no number in the weights."""
  params = tiny.params_of("gpt2")
  table = np.array(params["position"]["table"])
  table[17] = np.nan
  bad = params | dict(position=dict(table=table))
  e = Engine(
    tiny.build("gpt2"), bad, sampling=Sampling(), stop_ids=(), positions=19,
    unrolled=False, group=4, seed=0,
  )  # fmt: skip
  assert len(decode(e, [Row((1, 2, 3))], 15)[0]) == 15
  with pytest.raises(NonFinite, match="after what it wrote"):
    decode(e, [Row((1, 2, 3))], 16)
  beams = BeamSearch(
    tiny.build("gpt2"), bad, beams=Beams(2), stop_ids=(), positions=19,
    unrolled=False,
  )  # fmt: skip
  assert len(beams([(1, 2, 3)], 15)[0][0][1]) == 15
  with pytest.raises(NonFinite, match="after what it wrote"):
    beams([(1, 2, 3)], 16)


@pytest.mark.slow
def test_a_mesh_gives_the_tokens_of_one_device(engine):
  rows = [Row(p) for p in PROMPTS]
  expected = decode(engine("llama", SAMPLED), rows, 6)
  axes = {axis: 1 for axis in sharding.AXES} | dict(data=2, fsdp=2, tensor=2)
  mesh = sharding.make_mesh(**axes)
  model = tiny.build("llama", unroll=0)
  boxed = jax.eval_shape(
    model.init, jax.random.key(0), {"tokens": jnp.zeros((1, 1), jnp.int32)}
  )["params"]
  params = jax.device_put(
    tiny.params_of("llama"), sharding.of_tree(boxed, mesh)
  )
  with jax.set_mesh(mesh):
    e = Engine(
      model, params, sampling=SAMPLED, stop_ids=(), positions=0, unrolled=True,
      group=3, seed=0,
    )  # fmt: skip
    session = e.start(rows, 6)
    out = [[] for _ in rows]
    while not session.done:
      for found, new in zip(out, session.advance(3), strict=True):
        found += new.tolist()
      session.stop([])
  assert out == expected
  assert e.compiles == 2
