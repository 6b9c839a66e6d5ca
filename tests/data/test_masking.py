"""Masks hide what they should, and are functions of seed, example and epoch."""

import collections

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import masking, sentences, tasks, windows, words
from aigc_jax.data.draw import Draw
from aigc_jax.data.text import Text
from aigc_jax.data.tokenizers import Bytes, HuggingFace
from aigc_jax.errors import BadConfig
from tests.data.texts import ORDER, prose, settings

T, VOCAB, EOT = 40, 60, 1
# An id each for the end of text, the padding, and what BERT calls its own.
NAMES = {"<|endoftext|>": EOT, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


class Known:
  """A tokenizer of which only the ids are known."""

  name, special_words, eot = "made up", NAMES, EOT
  vocab = text_vocab = VOCAB


TOKENIZER = Known()


def records(n=200, seed=0, count=None):
  """Windows of text with an end of text here and there."""
  draw = np.random.default_rng(seed)
  window = draw.integers(5, VOCAB, (n, T + 1)).astype(np.int32)
  window[draw.random(window.shape) < 0.05] = EOT
  other = draw.integers(5, VOCAB, (n, T + 1)).astype(np.int32)
  counts = np.full(n, T) if count is None else np.full(n, count)
  return {"window": window, "other": other, "count": counts}


def draw(n=200, epoch=0, seed=3):
  numbers = np.arange(n)
  return Draw(seed, numbers + epoch * n, numbers)


def masked(found=None, random=None, *, segments=False, **options):
  found = records() if found is None else found
  random = random or draw(len(found["window"]))
  return masking.masked(
    found, random, eot=EOT, segments=segments, tokenizer=TOKENIZER, **options
  )


def restored(batch):
  """The rows with the targets in their places."""
  tokens = batch["tokens"].copy()
  for b, m in zip(*np.nonzero(batch["weights"]), strict=True):
    tokens[b, batch["at"][b, m]] = batch["targets"][b, m]
  return tokens


def test_a_share_of_a_row_is_asked_for_and_no_special_token():
  found = records()
  batch = masked(found, share=0.2)
  whole = found["window"][:, :-1]
  np.testing.assert_array_equal(restored(batch), whole)
  asked = batch["weights"].sum(axis=1)
  ordinary = (whole != EOT).sum(axis=1)
  np.testing.assert_array_equal(asked, np.rint(0.2 * ordinary))
  for at, weights, row in zip(
    batch["at"], batch["weights"], whole, strict=True
  ):
    places = at[weights > 0].tolist()
    assert places == sorted(set(places)) and EOT not in row[places]
  # Every place of a row is asked for, about equally often.
  counts = np.bincount(batch["at"][batch["weights"] > 0], minlength=T)
  assert counts.min() > 0.5 * counts.mean() < counts.max() < 1.6 * counts.mean()


def test_most_are_seen_as_the_mask_some_as_another_some_as_they_are():
  batch = masked(records(2000), draw(2000))
  real = batch["weights"] > 0
  seen = np.take_along_axis(batch["tokens"], batch["at"], axis=1)[real]
  targets = batch["targets"][real]
  n = len(targets)
  assert abs(np.mean(seen == 4) - 0.8) < 4 * np.sqrt(0.8 * 0.2 / n)
  other = seen[(seen != 4) & (seen != targets)]
  assert abs(len(other) / n - 0.1 * 55 / 56) < 4 * np.sqrt(0.1 * 0.9 / n)
  # Any ordinary token, and no other.
  assert set(other.tolist()) == {0, *range(5, VOCAB)}
  every = masked(as_mask=1.0, as_other=0.0)
  where = every["weights"] > 0
  asked = np.take_along_axis(every["tokens"], every["at"], axis=1)[where]
  assert set(asked.tolist()) == {4}


@pytest.mark.parametrize(
  "options",
  [{}, dict(whole_words=True), dict(edges=True), dict(next_sentence=True)],
)
def test_any_rows_of_a_batch_are_those_of_the_whole(options, monkeypatch):
  monkeypatch.setattr(masking, "begins", lambda _, tokens: tokens % 3 == 0)
  found, numbers = records(9), np.array([7, 2, 3])
  whole = masked(found, draw(9), **options)
  random = draw(9)
  part = masked(
    {key: x[numbers] for key, x in found.items()},
    Draw(random.seed, random.places[numbers], random.records[numbers]),
    **options,
  )
  for key, x in part.items():
    np.testing.assert_array_equal(x, whole[key][numbers])


def test_each_epoch_hides_others_and_a_still_task_the_same():
  a, b = (masked(random=draw(epoch=e)) for e in (0, 1))
  assert np.mean(a["at"] == b["at"]) < 0.3
  a, b = (masked(random=draw(epoch=e), still=True) for e in (0, 1))
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])
  # But not the same places in every row.
  assert len({tuple(row) for row in a["at"].tolist()}) > 150
  c = masked(random=draw(seed=4), still=True)
  assert np.mean(a["at"] == c["at"]) < 0.3


def test_words_are_asked_for_as_a_whole(monkeypatch):
  monkeypatch.setattr(masking, "begins", lambda _, tokens: tokens % 3 == 0)
  batch = masked(whole_words=True, share=0.3)
  whole = restored(batch)
  asked = np.zeros(whole.shape, bool)
  for b, m in zip(*np.nonzero(batch["weights"]), strict=True):
    asked[b, batch["at"][b, m]] = True
  number = np.cumsum(whole % 3 == 0, axis=1)
  sizes = collections.Counter()
  for b in range(len(whole)):
    free = whole[b] != EOT
    for word in np.unique(number[b]):
      tokens = (number[b] == word) & free
      assert len(set(asked[b, tokens].tolist())) <= 1
      sizes[int(asked[b, tokens].sum())] += 1
  assert len(sizes) > 4
  wanted = np.rint(0.3 * (whole != EOT).sum(axis=1))
  assert np.all(asked.sum(axis=1) <= wanted)
  assert np.mean(asked.sum(axis=1) == wanted) > 0.5


def test_padding_is_a_segment_of_its_own_and_never_asked_for():
  batch = masked(records(count=9))
  assert np.array_equal(batch["segments"], np.tile(np.arange(T) < 10, (200, 1)))
  assert batch["at"].max() < 10
  nothing = masked(records(count=0))
  assert nothing["weights"].sum() == nothing["segments"].sum() == 0


def test_documents_of_a_row_have_segments_and_positions_of_their_own():
  batch = masked(segments=True)
  whole = restored(batch)
  wanted = tasks.next_token(records(), None, eot=EOT, segments=True)
  np.testing.assert_array_equal(whole, wanted["tokens"])
  for key in ("segments", "positions"):
    np.testing.assert_array_equal(batch[key], wanted[key])


def test_edges_stand_before_and_behind_the_text():
  found = records(count=20)
  batch = masked(found, edges=True)
  whole = restored(batch)
  length = batch["segments"].sum(axis=1)
  assert set(length.tolist()) == {23}
  assert set(whole[:, 0]) == {2} and set(whole[:, 22]) == {3}
  np.testing.assert_array_equal(whole[:, 1:22], found["window"][:, :21])
  full = restored(masked(edges=True))
  np.testing.assert_array_equal(full[:, 1:-1], records()["window"][:, : T - 2])
  assert set(full[:, -1]) == {3}


def test_half_of_the_pairs_follow_each_other():
  found = records()
  batch = masked(found, next_sentence=True)
  whole, follows = restored(batch), batch["follows"]
  assert 0.4 < follows.mean() < 0.6
  firsts = set()
  for b in range(len(whole)):
    (start,) = np.flatnonzero(np.diff(batch["types"][b]) == 1) + 1
    firsts.add(start)
    end = batch["segments"][b].sum() - 1
    assert whole[b, 0] == 2 and whole[b, start - 1] == whole[b, end] == 3
    first, second = whole[b, 1 : start - 1], whole[b, start:end]
    assert min(len(first), len(second)) >= (T - 3) // 4
    np.testing.assert_array_equal(first, found["window"][b, : len(first)])
    text = found["window"][b, len(first) :]
    text = text if follows[b] == 0 else found["other"][b]
    np.testing.assert_array_equal(second, text[: len(second)])
    assert end == T - 1 and not batch["types"][b, end + 1 :].any()
  assert len(firsts) > 10


def test_the_other_text_of_a_pair_is_another_window(book, root):
  stream = data.build(
    **settings(book, root, tokenizer="sentencepiece", tokenizer_vocab=400),
    **ORDER, task=dict(kind="masked", next_sentence=True), batch=8, length=16,
    segments=False, special=masking.SPECIAL,
  )  # fmt: skip
  (view,) = stream.views
  numbers = np.arange(len(view))
  found = view.gather(numbers)
  far = found["other"][:, None] == view.view.gather(numbers)["window"]
  away = (np.all(far, axis=2).argmax(axis=1) - numbers) % len(view)
  assert away.min() > 1 and len(set(away.tolist())) > len(view) // 4


# name: options of the task
TASKS = {
  "plain": {},
  "whole words": dict(whole_words=True, still=True),
  "pairs": dict(next_sentence=True),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_stream_and_a_held_out_set_give_what_their_spec_says(
  name, book, root
):
  arguments = settings(
    book, root, tokenizer="sentencepiece", tokenizer_vocab=400,
    task=dict(kind="masked") | TASKS[name], batch=4, length=32, segments=False,
    special=masking.SPECIAL,
  )  # fmt: skip
  stream = data.build(**arguments, **ORDER)
  heldout = data.build_eval(**arguments, split="validation")
  windows.check_task(arguments["task"], stream.tokenizer, dict(vocab=400))
  for some, n in ((stream, 3), (heldout, heldout.batches - 1)):
    batch = some.rows(n, slice(None))
    assert set(batch) == set(some.spec)
    for key, x in batch.items():
      assert (x.shape, x.dtype) == (some.spec[key].shape, some.spec[key].dtype)
  # Known beforehand is only what a task without randomness counts.
  assert heldout.targets is None and heldout.counts == {}
  again = heldout.rows(0, slice(None))
  np.testing.assert_array_equal(
    again["tokens"], heldout.rows(0, slice(None))["tokens"]
  )


def test_a_tokenizer_trained_here_has_a_mask_that_no_text_makes():
  texts = [prose(seed, 100) for seed in range(4)]
  plain = sentences.train(texts, 400, "prose")
  made = sentences.train(texts, 400, "prose", masking.SPECIAL)
  assert plain.fingerprint != made.fingerprint
  ids = masking.ids_of(made)
  assert (ids.first, ids.last, ids.mask) == (2, 3, 4)
  text = "a [MASK] b [CLS] [SEP] c"
  found = made.encode(text)
  assert not set(found.tolist()) & set(ids.never.tolist())
  assert made.decode(found) == text
  assert made.vocab == 400


def test_a_tokenizer_without_a_mask_is_refused_with_the_ways_out():
  with pytest.raises(BadConfig) as fault:
    masking.check(Bytes(), dict(vocab=300))
  for way in ("tokenizer=sentencepiece", "mask_token", "task.mask=257"):
    assert way in str(fault.value)
  masking.check(Bytes(), dict(vocab=258), mask=257)
  with pytest.raises(BadConfig, match="model.vocab=258"):
    masking.check(Bytes(), dict(vocab=257), mask=257)
  with pytest.raises(BadConfig, match="edges=False"):
    masking.check(Bytes(), dict(vocab=258), mask=257, edges=True)
  masking.check(Bytes(), {}, mask=257)


def test_a_config_that_cannot_be_is_refused_before_anything_is_opened():
  whole = dict(
    sources=(), path=None, field="text", tokenizer="bytes", tokenizer_vocab=300,
    batch=4, length=32, segments=False, shuffle=True, validation=0.1,
    validation_path=None, root="r", skip_steps=(),
  )  # fmt: skip
  for options, more, word in (
    (dict(share=1.0), {}, "share=1.0"),
    (dict(as_mask=0.9, as_other=0.2), {}, "add up"),
    (dict(edges=True), dict(segments=True), "segments=False"),
    (dict(next_sentence=True), dict(length=5), "length=5"),
    (dict(wholewords=True), {}, "whole_words"),
  ):
    with pytest.raises(BadConfig, match=word):
      Text(**whole | more, task=dict(kind="masked") | options)
  found = Text(**whole, task=dict(kind="masked"))
  with pytest.raises(BadConfig, match="behind a mask"):
    found.check_model(dict(vocab=300))


def wordpiece():
  """A tokenizer as BERT's, with its special tokens named beside it."""
  library = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
  names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[HIDDEN]"]
  pieces = ["un", "##able", "to", "##gether", "a"]
  vocab = {word: i for i, word in enumerate(names + pieces)}
  made = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
  made.pre_tokenizer = library.pre_tokenizers.Whitespace()
  made.add_special_tokens(names)
  beside = {"tokenizer_config.json": b'{"mask_token": "[HIDDEN]"}'}
  return HuggingFace(made.to_str().encode(), "[SEP]", "x", beside)


def test_words_begin_as_the_tokenizer_spells_them(trained):
  theirs = wordpiece()
  assert masking.ids_of(theirs).mask == 4
  assert masking.ids_of(theirs).first == 2
  ids = theirs.encode("unable a together")[None]
  assert words.begins(theirs, ids).tolist() == [[1, 0, 1, 1, 0]]
  text = "  def return_x(tokens):\n\tnaïve = 数据"
  for tokenizer in (trained, Bytes()):
    ids = tokenizer.encode(text)[None]
    starts = np.flatnonzero(words.begins(tokenizer, ids)[0])
    cut = np.split(ids[0], starts[1:])
    spelled = [tokenizer.decode(part).strip() for part in cut]
    spelled = [word for word in spelled if word]
    assert spelled == [
      "def", "return_x", "(", "tokens", ")", ":", "naïve", "=", "数据"
    ]  # fmt: skip
