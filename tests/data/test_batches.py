"""Batches: a pure function of (seed, fingerprint, step), on any hosts."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from aigc_jax import data, sharding
from aigc_jax.data import mixture, tasks, windows
from aigc_jax.data.tokenizers import Bytes
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.run.standing import Standing
from tests.data.texts import ORDER, SHAPE, prose, settings, text_source

ALL = slice(None)
MESHES = [
  dict(data=8),
  dict(data=2, fsdp=3 - 1, tensor=2),
  dict(sequence=4, tensor=2),
  dict(data=2, sequence=4),
]


def build(path, root, **changes):
  arguments = settings(path, root) | SHAPE | ORDER | changes
  return data.build(**arguments)


def build_eval(path, root, **changes):
  arguments = settings(path, root) | SHAPE | {"split": "validation"} | changes
  return data.build_eval(**arguments)


def mesh_of(**sizes):
  return sharding.make_mesh(**({axis: 1 for axis in sharding.AXES} | sizes))


def same(one, two):
  assert one.keys() == two.keys()
  for key in one:
    assert one[key].dtype == two[key].dtype
    assert np.array_equal(one[key], two[key]), key
  return True


# Tasks.


def next_token(window, count, *, segments):
  """The task on these windows, whose end of text is 9."""
  records = {"window": window, "count": count}
  return tasks.next_token(records, None, eot=9, segments=segments)


def test_segments_and_positions_begin_anew_at_each_end_of_text():
  window = np.array([[9, 1, 2, 9, 9, 3, 4], [5, 6, 9, 7, 9, 9, 9]], np.int32)
  batch = next_token(window, np.array([6, 3]), segments=True)
  assert batch["tokens"].tolist() == window[:, :-1].tolist()
  assert batch["targets"].tolist() == window[:, 1:].tolist()
  assert batch["positions"].tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 0, 0]]
  assert batch["segments"].tolist() == [[1, 1, 1, 2, 3, 3], [1, 1, 2, 0, 0, 0]]
  assert batch["weights"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]


def test_without_segments_there_are_none():
  window = np.zeros((2, 5), np.int32)
  batch = next_token(window, np.array([4, 4]), segments=False)
  assert set(batch) == {"tokens", "targets", "weights"}


def test_an_unknown_task_is_refused():
  with pytest.raises(BadConfig, match="'next_tokn' is unknown; did you mean"):
    tasks.task_of(dict(kind="next_tokn"))


# The order.


@pytest.mark.parametrize("size", [1, 37, mixture.SMALL + 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_epoch_has_every_window_once_in_a_new_order(size, shuffle):
  order = mixture.order([size], [1.0], 5, shuffle)
  first = [order[i] for i in range(size)]
  assert sorted(first) == list(range(size))
  assert (first == sorted(first)) != (shuffle and size > 1)
  starts = [[order[e * size + i] for i in range(min(size, 37))] for e in (1, 2)]
  for start in starts:
    assert len(set(start)) == len(start)
    assert (start == first[:37]) != (shuffle and size > 1)
  assert (starts[0] == starts[1]) != (shuffle and size > 1)


def test_a_shuffled_window_is_anywhere_equally_often():
  counts = np.zeros((5, 5))
  for seed in range(400):
    order = mixture.order([5], [1.0], seed, True)
    for place in range(5):
      counts[order[place], place] += 1
  assert abs(counts - 80).max() < 40  # five standard deviations


def test_another_seed_is_another_order():
  one, two = (
    [mixture.order([50], [1.0], s, True)[i] for i in range(50)] for s in (1, 2)
  )
  assert one != two and sorted(one) == sorted(two)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_mixture_keeps_its_weights_and_the_epochs_of_each_source(shuffle):
  sizes, weights = [11, 23, 5], [0.5, 0.3, 0.2]
  order = mixture.order(sizes, weights, 0, shuffle)
  found = np.array([order[i] for i in range(1000)])
  ends = np.cumsum([0, *sizes])
  for k, weight in enumerate(weights):
    mine = found[(found >= ends[k]) & (found < ends[k + 1])] - ends[k]
    assert abs(len(mine) - 1000 * weight) <= 2
    for e in range(len(mine) // sizes[k]):
      epoch = mine[e * sizes[k] : (e + 1) * sizes[k]]
      assert sorted(epoch.tolist()) == list(range(sizes[k]))


def test_impossible_weights_are_refused():
  for weights in ([0.0, 0], [-1.0, 2.0], [float("nan")], ["1"], [float("inf")]):
    with pytest.raises(BadConfig, match="weight"):
      mixture.check_weights(weights)


@budget(max_examples=60, deadline=None)
@given(
  st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 9)).map(
      lambda p: (p[0], p[0] + p[1])
    )
    | st.integers(0, 60),
    max_size=6,
  )
)
def test_steps_go_over_the_data_steps_that_are_not_skipped(skip):
  skipped = {
    s for e in skip for s in (range(*e) if isinstance(e, tuple) else [e])
  }
  expected = [s for s in range(200) if s not in skipped][:80]
  found = [mixture.first_example(s, 7, skip) for s in range(80)]
  assert found == [7 * step for step in expected]


def test_impossible_skips_are_refused():
  for skip in ([(3, 3)], [(5, 2)], [-1], [(1, 2, 3)], [(0, 1.5)]):
    with pytest.raises(BadConfig, match="skip_steps"):
      mixture.intervals(skip)


# Streams.


def test_a_batch_is_a_pure_function(stream, shelf, root, tmp_path):
  steps = [7, 0, 3, 10**6]
  first = [stream.rows(s, ALL) for s in steps]
  again = build(shelf, tmp_path / "elsewhere")  # stores made anew
  assert again.fingerprint == stream.fingerprint
  for step, batch in reversed(list(zip(steps, first, strict=True))):
    assert same(again.rows(step, ALL), batch)
  assert not np.array_equal(first[0]["tokens"], first[1]["tokens"])


def test_rows_are_rows_of_the_batch(stream):
  whole = stream.rows(4, ALL)
  for rows in (slice(2, 5), np.array([5, 0]), [3]):
    same(stream.rows(4, rows), {k: v[rows] for k, v in whole.items()})


def test_an_epoch_has_every_target_once(stream):
  count = len(stream.views[0])
  seen = []
  for step in range(-(-count // stream.batch)):
    seen += [r.tobytes() for r in stream.rows(step, ALL)["targets"]]
  store = stream.stores[0]
  assert count == store.windows(SHAPE["length"])
  expected = [
    store.window(i, SHAPE["length"])[1:].tobytes() for i in range(count)
  ]
  assert sorted(seen[:count]) == sorted(expected)


def test_targets_are_the_next_tokens_and_batches_are_as_specified(stream):
  batch = stream.rows(2, ALL)
  assert np.array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
  assert batch.keys() == stream.spec.keys()
  for key, spec in stream.spec.items():
    assert (batch[key].shape, batch[key].dtype) == (spec.shape, spec.dtype)
  assert {str(s.dtype) for s in stream.spec.values()} == {"int32", "float32"}


def test_the_fingerprint_follows_the_data_and_not_seed_or_skips(
  stream, shelf, book, root
):
  for changes in (dict(seed=4), dict(skip_steps=(1,))):
    assert build(shelf, root, **changes).fingerprint == stream.fingerprint
  two = [text_source(shelf), text_source(book, weight=0.5)]
  others = [dict(batch=5), dict(length=8), dict(segments=True)]
  others += [dict(shuffle=False), dict(validation=0.2), dict(sources=two)]
  found = {build(shelf, root, **c).fingerprint for c in others}
  assert len(found) == len(others) and stream.fingerprint not in found


def test_skipped_steps_are_left_out_and_nothing_else_moves(stream, shelf, root):
  skipping = build(shelf, root, skip_steps=((2, 4), 5))
  for step, at in enumerate([0, 1, 4, 6, 7]):
    same(skipping.rows(step, ALL), stream.rows(at, ALL))
    assert skipping.data_step(step) == at


def test_what_is_passed_over_is_not_told_as_seen(shelf, root):
  skipping = build(shelf, root, skip_steps=((2, 4), 5))
  run = types.SimpleNamespace(steps=7)
  told = Standing(run, skipping, {}).epochs()
  assert told.startswith("to step 7: 42 examples, ")  # six a step
  before = {"consumed": {"units": {"examples": 30}, "flops": 0}}
  half = build(shelf, root, batch=3, skip_steps=((2, 4), 5))
  going_on = half.going_on(5, skipping.position(5), [(0, 6)])
  told = Standing(run, going_on, before).epochs()
  assert told.startswith("to step 7: 36 examples, ")


def examples(stream, steps) -> list[bytes]:
  """The rows of these batches, one after the other."""
  return [
    row.tobytes() for step in steps for row in stream.rows(step, ALL)["tokens"]
  ]


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_batch_of_another_size_goes_on_at_the_example(
  stream, shelf, root, batch
):
  """Six rows a step, and from step 5 on another number of them."""
  whole = examples(stream, range(12))
  other = build(shelf, root, batch=batch)
  goes_on = other.going_on(5, stream.position(5), stream.batches)
  steps = range(5, 5 + 42 // batch)
  assert examples(goes_on, steps) == whole[30 : 30 + 42 // batch * batch]
  again = other.going_on(7, goes_on.position(7), goes_on.batches)
  assert examples(again, range(7, 9)) == examples(goes_on, range(7, 9))
  assert again.batches == goes_on.batches == [(0, 6), (30, batch)]


def test_steps_to_skip_are_of_the_batch_they_had(stream, shelf, root):
  """Data steps 4 and 5 of six rows, 6 and 7 of two: 24 to 40."""
  skips = dict(skip_steps=((4, 8),))
  whole = examples(stream, range(12))
  from_start = build(shelf, root, **skips)
  assert examples(from_start, range(4)) == whole[:24]
  goes_on = build(shelf, root, batch=2, **skips).going_on(4, 24, [(0, 6)])
  assert examples(goes_on, range(4, 8)) == whole[32:40]
  later = build(shelf, root, batch=2, **skips).going_on(
    7, 30, [(0, 6), (24, 2)]
  )
  assert later.position(7) == 32
  # Ten data steps of six rows, then of two: those of examples 60 and 64.
  told = build(shelf, root, batch=2).going_on(9, 60, [(0, 6)])
  assert [told.data_step(step) for step in (9, 11)] == [10, 12]
  # What lies behind is skipped no second time.
  assert build(shelf, root, **skips).going_on(9, 60, [(0, 6)]).position(9) == 60


def test_a_mixture_takes_from_its_sources_by_weight(shelf, tmp_path):
  other = tmp_path / "x.txt"
  other.write_text("\u00ff" * 3000)  # bytes that the shelf does not have
  sources = [text_source(shelf, weight=3.0), text_source(other, weight=1.0)]
  stream = build(shelf, tmp_path, sources=sources)
  rows = np.concatenate([stream.rows(s, ALL)["tokens"] for s in range(50)])
  assert abs((rows == 0xBF).any(axis=1).mean() - 0.25) < 0.01
  sources[1]["weight"] = 0.0
  alone = build(shelf, tmp_path, sources=sources)
  assert alone.fingerprint != stream.fingerprint and len(alone.stores) == 1


def test_a_source_smaller_than_a_batch_says_what_would_fit(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text("abc\n" * 25)
  with pytest.raises(BadData, match=r"94 tokens.*batch=6 x length=16 = 96 t.*"
                     r"length=15, --config.data.batch=5"):  # fmt: skip
    build(path, tmp_path)
  build(path, tmp_path, length=15)
  build(path, tmp_path, batch=5)
  with pytest.raises(BadData, match="less than one window"):
    build(path, tmp_path, length=100, batch=1)


def test_impossible_shapes_are_refused(shelf, root):
  for changes in (dict(batch=0), dict(length=-1), dict(length=2.5)):
    with pytest.raises(BadConfig, match="expected a positive integer"):
      build(shelf, root, **changes)


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused(stream):
  data.check_vocab(stream, {"vocab": 257})
  with pytest.raises(BadConfig, match="model.vocab=256.*model.vocab=257.*384"):
    data.check_vocab(stream, {"vocab": 256})


def test_a_store_of_another_tokenizer_is_refused(stream, trained):
  with pytest.raises(BadData, match="made with another tokenizer"):
    windows.stream_of(stream.stores, [1.0], trained, **SHAPE, **ORDER)


def test_ids_that_the_tokenizer_does_not_have_are_refused(stream):
  class Narrow(Bytes):
    vocab = 100

  with pytest.raises(BadData, match="token id 256, but the tokenizer has 100"):
    windows.stream_of(stream.stores, [1.0], Narrow(), **SHAPE, **ORDER)


# Held-out sets.


@pytest.mark.parametrize("batch, length", [(1, 1), (6, 16), (5, 7), (4, 9999)])
def test_every_held_out_target_comes_exactly_once(
  shelf, book, root, batch, length
):
  sources = [text_source(shelf), text_source(book)]
  held = build_eval(
    shelf, root, sources=sources, batch=batch, length=length, segments=True
  )
  expected = [s.read(1, s.tokens) for s in held.stores]
  found, weight = [], 0.0
  for index in range(held.batches):
    rows = held.rows(index, ALL)
    assert rows["tokens"].shape == (batch, length)
    real = rows["weights"] > 0
    assert ((rows["segments"] > 0) == real).all()
    found.append(rows["targets"][real])
    weight += rows["weights"].sum()
  assert np.array_equal(np.concatenate(found), np.concatenate(expected))
  assert held.counts["tokens"] == weight == sum(map(len, expected))
  text = Bytes().decode_bytes(np.concatenate(expected))
  assert held.counts["bytes"] == len(text)
  assert not held.rows(held.batches, ALL)["weights"].any()


def test_the_first_batches_count_their_own_tokens_and_bytes(shelf, root):
  held = build_eval(shelf, root)
  part = held.first(2)
  assert part.batches == 2 and part.counts["tokens"] == 2 * 6 * 16
  targets = np.concatenate([held.rows(i, ALL)["targets"] for i in range(2)])
  assert part.counts["bytes"] == (targets != 256).sum() < held.counts["bytes"]
  assert part.fingerprint != held.fingerprint
  assert held.first(-1) is held.first(10**6) is held


def test_yardsticks_of_several_sources_weigh_by_their_bytes(shelf, book, root):
  sources = [text_source(shelf), text_source(book)]
  both = build_eval(shelf, root, sources=sources)
  one, two = (build_eval(p, root) for p in (shelf, book))
  for name in ("gzip", "xz"):
    expected = (
      one.yardsticks[name] * one.counts["bytes"]
      + two.yardsticks[name] * two.counts["bytes"]
    )
    assert both.yardsticks[name] == pytest.approx(
      expected / both.counts["bytes"]
    )


def test_held_out_and_training_text_have_nothing_in_common(shelf, root):
  train, held = build(shelf, root), build_eval(shelf, root)
  total = sum(len(p.read_bytes()) for p in shelf.rglob("*.txt"))
  assert train.stores[0].bytes + held.counts["bytes"] == total


# On devices.


@pytest.mark.parametrize("sizes", MESHES)
def test_every_mesh_holds_the_same_batch(stream, shelf, root, sizes):
  stream = build(shelf, root, batch=8, segments=True)
  mesh = mesh_of(**sizes)
  placed = data.place(stream, 3, mesh)
  same(jax.tree.map(np.asarray, placed), stream.rows(3, ALL))
  for x in placed.values():
    assert x.sharding == sharding.shardings("BT", x.shape, mesh)


def test_one_device_holds_the_same_batches_too(shelf, root):
  stream = build(shelf, root, batch=8, segments=True)
  mesh = sharding.mesh_of(jax.devices()[0])
  placed = data.place(stream, 3, mesh)
  same(jax.tree.map(np.asarray, placed), stream.rows(3, ALL))
  for x in placed.values():
    assert x.sharding == sharding.shardings("BT", x.shape, mesh)
  twice = data.place(stream, 3, mesh, per_call=2)
  for i in range(2):
    for key, value in stream.rows(3 + i, ALL).items():
      assert np.array_equal(twice[key][i], value)


HOST = """
import sys
import jax
import numpy as np
process, port, path, root, out = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from aigc_jax import data
from tests.data import test_batches as laws
stream = laws.build(path, root, batch=8, segments=True)
rows, asked = stream.rows, []
stream.rows = lambda step, r: (asked.append(r.tolist()), rows(step, r))[1]
mesh = laws.mesh_of(data=4, tensor=2)
placed = data.place(stream, 5, mesh)
found = {"asked": np.array(asked[0])}
for key, x in placed.items():
  for shard in x.addressable_shards:
    found[f"{key} {shard.index[0].start} {shard.index[0].stop}"] = shard.data
np.savez(out, **found)
"""


@pytest.mark.slow
def test_two_hosts_build_the_rows_of_one_and_no_more(shelf, root, tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  whole = build(shelf, root, batch=8, segments=True).rows(5, ALL)
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", HOST, str(i), str(port), str(shelf), str(root),
       str(tmp_path / f"{i}.npz")],
      env=os.environ | {"XLA_FLAGS": ""},
    )
    for i in range(2)
  ]  # fmt: skip
  assert [host.wait(timeout=600) for host in hosts] == [0, 0]
  asked = []
  for i in range(2):
    with np.load(tmp_path / f"{i}.npz", allow_pickle=False) as found:
      asked.append(found["asked"].tolist())
      for name in set(found) - {"asked"}:
        key, start, stop = name.split()
        assert set(range(int(start), int(stop))) <= set(asked[-1])
        assert np.array_equal(found[name], whole[key][int(start) : int(stop)])
  assert sorted(asked) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_several_steps_in_one_call_are_those_steps(shelf, root):
  stream = build(shelf, root, batch=8)
  placed = data.place(stream, 2, mesh_of(data=8), per_call=3)
  assert placed["tokens"].shape == (3, 8, 16)
  for i in range(3):
    for key, value in stream.rows(2 + i, ALL).items():
      assert np.array_equal(placed[key][i], value)
  assert placed["tokens"].addressable_shards[0].data.shape == (3, 1, 16)


def working() -> int:
  return sum(t.name == "batches" for t in threading.enumerate())


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_batches_come_in_order_whatever_is_ahead(stream, ahead):
  mesh = mesh_of(data=1, tensor=8)
  found = list(data.batches(stream, mesh, 3, 9, ahead=ahead))
  assert [step for step, _ in found] == [3, 4, 5, 6, 7, 8]
  for step, batch in found:
    same(jax.tree.map(np.asarray, batch), stream.rows(step, ALL))
  assert not working()


def test_batches_of_several_steps_go_on_by_as_many(stream):
  found = list(data.batches(stream, mesh_of(tensor=8), 0, 6, per_call=3))
  assert [step for step, _ in found] == [0, 3]
  assert found[1][1]["tokens"].shape == (3, 6, 16)


def test_closing_ends_the_thread_at_once(stream):
  with data.batches(stream, mesh_of(tensor=8), 0, None) as batches:
    assert next(batches)[0] == 0
    assert working() == 1
  assert not working()
  batches.close()
  assert list(batches) == []


def test_no_more_is_built_than_two_goes_before_it_is_wanted(stream):
  built = []

  class Counting:
    spec = stream.spec

    def rows(self, step, rows):
      built.append(step)
      return stream.rows(step, rows)

  with data.batches(Counting(), mesh_of(tensor=8), 0, None, ahead=2) as batches:
    next(batches)
    time.sleep(0.3)
    # The first go is being taken, another waits, a third is in hand.
    assert built == [0, 1, 2, 3, 4, 5]


def test_an_error_in_the_thread_comes_in_its_place(stream):
  class Broken:
    spec = stream.spec

    def rows(self, step, rows):
      if step == 2:
        raise BadData("shard gone")
      return stream.rows(step, rows)

  batches = data.batches(Broken(), mesh_of(tensor=8), 0, None)
  assert [next(batches)[0] for _ in range(2)] == [0, 1]
  with pytest.raises(BadData, match="shard gone"):
    next(batches)
  assert not working()
  assert list(batches) == []


# Preparing by itself.


def test_missing_stores_are_prepared_and_said_once(tmp_path):
  path = tmp_path / "my.book.txt"
  path.write_text(prose(9, 300))
  arguments = settings(path, tmp_path / "root", tokenizer="sentencepiece")
  look = {k: v for k, v in arguments.items() if k != "say"}
  assert data.prepared(**look) is None
  assert not (tmp_path / "root" / "stores").exists()
  said = []
  stream = data.build(**arguments | {"say": said.append}, **SHAPE, **ORDER)
  assert any("training a SentencePiece" in text for text in said)
  assert any("preparing 'my.book' (train)" in text for text in said)
  (manifest,) = data.prepared(**look)
  assert manifest["fingerprint"] == stream.stores[0].fingerprint
  assert data.prepared(**look, split="validation") is None
  said.clear()
  data.build(**arguments | {"say": said.append}, **SHAPE, **ORDER)
  assert said == []
  held = data.build_eval(**arguments, **SHAPE, split="validation")
  raw = b"".join(
    stream.tokenizer.decode_bytes(s.read(0, s.tokens))
    for s in (stream.stores[0], held.stores[0])
  )
  assert raw == path.read_bytes()


def test_stores_of_names_with_dots_do_not_meet(tmp_path):
  for name in ("a.one.txt", "a.two.txt"):
    (tmp_path / name).write_text(prose(len(name), 90) + name)
    build(tmp_path / name, tmp_path / "root")
  assert (
    len([p for p in (tmp_path / "root/stores").iterdir() if p.is_dir()]) == 2
  )


def test_no_source_is_refused(root):
  with pytest.raises(BadConfig, match="data.sources is empty"):
    build(None, root, sources=[])


def found_eval(root, made, *prints, **changes):
  """The set of these fingerprints, or of `made`, below a root."""
  settings = dict(
    root=str(root), splits=["validation"], batches=None,
    tokenizer=made.tokenizer, task=dict(kind="next_token"),
    batch=made.batch, length=SHAPE["length"], segments=False,
  ) | changes  # fmt: skip
  return data.find_eval(prints or [made.fingerprint], **settings)


def test_a_held_out_set_is_found_by_its_fingerprint_without_its_text(
  book, tmp_path
):
  root = tmp_path / "root"
  mine = shutil.copy(book, tmp_path / "book.txt")
  made = build_eval(mine, root)
  os.remove(mine)
  before = sorted(root.rglob("*"))
  found = found_eval(root, made)
  assert found.fingerprint == made.fingerprint
  assert (found.rows(0, slice(None))["tokens"]
          == made.rows(0, slice(None))["tokens"]).all()  # fmt: skip
  first = made.first(1)
  part = found_eval(root, made, "0" * 64, first.fingerprint, batches=1)
  assert (part.fingerprint, part.batches) == (first.fingerprint, 1)
  assert found_eval(root, made, "0" * 64) is None
  assert found_eval(root, made, splits=["train"]) is None
  assert found_eval(tmp_path / "none", made) is None
  assert sorted(root.rglob("*")) == before


def test_a_store_that_was_changed_is_not_found_in_silence(book, tmp_path):
  root = tmp_path / "root"
  made = build_eval(book, root)
  (shard,) = (made.stores[0].folder).glob("tokens-*.npy")
  content = bytearray(shard.read_bytes())
  content[-2] ^= 1
  shard.write_bytes(content)
  with pytest.raises(BadData, match="not the bytes"):
    found_eval(root, made)
