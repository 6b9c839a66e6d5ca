"""Pairs as data: a source text and the target text that is written from it.

A batch is a dict of global arrays; B is the batch, S and T are the lengths of
the two sides. Each side ends with the tokenizer's end of text.

  encoder_tokens     (B, S) int32    sources
  encoder_segments   (B, S) int32    the pair in its row, from 1; 0 padding
  tokens             (B, T) int32    targets, each moved on by a start token
  targets            (B, T) int32    targets
  weights            (B, T) float32  1, and 0 in the padding
  segments           (B, T) int32    the pair in its row, from 1; 0 padding

Packed, with several pairs in a row, also encoder_positions and positions, which
begin at 0 in each pair. Pairs are read and tokenised at each start and kept in
memory, 4 bytes a token.

What becomes of pairs that do not fit is told at each start: one with an empty
side is left out; of one with a side that is too long (`long`) that side is
"cut", its end of text with it, or the pair is "left_out".
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.data.documents import ALL
from aigc_jax.data.draw import Draw
from aigc_jax.data.example import LOOKED_AT, Example
from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.listing import check_apart
from aigc_jax.data.pair_sources import (
  Pair,
  check_source,
  held_out,
  read_pairs,
)
from aigc_jax.data.preparation import find_tokenizer
from aigc_jax.data.spec import Array, Spec
from aigc_jax.data.stream import EvalSet, Stream, check_batch, digest
from aigc_jax.data.tasks import Batch, Records
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import BadConfig, BadData, choose, nearest
from aigc_jax.terminal import counted

SPLITS = ("train", "validation", ALL)
LONG = ("cut", "left_out")
OPEN = 32  # rows that a pair may still be packed into


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
  """What `data` of a config says of pairs; its keys.

  sources: dicts of kind "json" or "parquet" with path, source and target (the
  fields), "tfds" with path (the folder of a prepared dataset), split and both
  fields, or "gettext" with path; weight is 1 by default. tokenizer: of both
  sides; "sentencepiece" is trained on the pairs of the first source, to
  tokenizer_vocab pieces. source_length, target_length: tokens of a row of each
  side, ends of text included. packed: whether a row may have several pairs.
  validation: the share held out, by a hash of the source text.

  Raises BadConfig for what no pairs could mend.
  """

  sources: Sequence[Mapping]
  tokenizer: str
  tokenizer_vocab: int
  batch: int
  source_length: int
  target_length: int
  packed: bool
  long: str
  shuffle: bool
  validation: float
  root: str
  skip_steps: Sequence[Sequence[int] | int]

  def __post_init__(self):
    check_batch(
      batch=self.batch, source_length=self.source_length,
      target_length=self.target_length,
    )  # fmt: skip
    choose(self.long, dict.fromkeys(LONG), "data.long")
    if not 0 <= self.validation < 1:
      raise BadConfig(
        f"data.validation={self.validation}: expected a fraction from 0 to "
        "below 1"
      )
    for i, source in enumerate(self.sources):
      check_source(f"data.sources[{i}]", source)

  @property
  def spec(self) -> Spec:
    """What a batch is."""
    sides = {
      "S": ("encoder_", self.source_length),
      "T": ("", self.target_length),
    }
    names = ["tokens", "segments"] + ["positions"] * self.packed
    found = {
      prefix + name: Array("B" + letter, (self.batch, n), np.dtype(np.int32))
      for letter, (prefix, n) in sides.items()
      for name in names
    }
    shape = (self.batch, self.target_length)
    found["targets"] = Array("BT", shape, np.dtype(np.int32))
    found["weights"] = Array("BT", shape, np.dtype(np.float32))
    return found

  @property
  def units(self) -> dict[str, int]:
    """What a batch counts as consumed: rows, and their room for tokens."""
    length = self.source_length + self.target_length
    return {"examples": self.batch, "tokens": self.batch * length}

  @property
  def paths(self) -> list[str]:
    """The files and folders that are read, as the config names them."""
    return [source["path"] for source in self.used_sources()]

  @property
  def holds_nothing_out(self) -> bool:
    """Whether there is no validation split, as data.validation=0 asks for."""
    return not self.validation

  def used_sources(self) -> list[dict]:
    """The sources. Raises BadConfig where there are none."""
    if not self.sources:
      raise BadConfig(
        "no data: name data.sources in the config, such as dict(kind='json', "
        "path=PATH, source='en', target='de')"
      )
    return [dict(source) for source in self.sources]

  def check_model(self, model: Mapping) -> None:
    """Raises BadConfig where the model has fewer ids than the tokenizer."""
    needed = self.tokenizer_vocab
    if self.tokenizer != "sentencepiece":
      needed = load_tokenizer(self.tokenizer).text_vocab
    check_ids_of(model, needed, self.tokenizer)

  def check_heldout(self, section: str, which: Mapping) -> None:
    """Raises BadConfig for what `heldout` could not open."""
    split = which.get("split")
    for key in which:
      if key not in ("split", "sources"):
        raise BadConfig(
          f"{section} has no key {key!r} (it has: split, sources)"
        )
    if split not in SPLITS:
      raise BadConfig(
        f"{section}.split={split!r}{nearest(str(split), SPLITS)} "
        f"(there are: {', '.join(SPLITS)})"
      )
    for i, source in enumerate(which.get("sources", ())):
      check_source(f"{section}.sources[{i}]", source)

  def check_workdir(self, workdir: str) -> None:
    """Raises BadConfig for a work directory that is the folder of the pairs."""
    check_apart(workdir, self.paths, "the pairs themselves")

  def prepared(self) -> None:
    """Nothing is prepared beforehand."""

  def find_tokenizer(self, say=print):
    """The tokenizer, trained where it is missing."""
    if self.tokenizer != "sentencepiece":
      return load_tokenizer(self.tokenizer)
    sources = self.used_sources()
    pairs = _read(sources[0], "train", self.validation)
    return trained_on(
      [side for pair in pairs for side in pair], "pairs", self.root,
      self.tokenizer_vocab, say, called=f"the pairs of {sources[0]['path']!r}",
    )  # fmt: skip

  def stream(self, *, seed: int, model: Mapping, say=print, progress=None):
    """The training data; model is config.model."""
    tokenizer = self.find_tokenizer(say)
    used = self.used_sources()
    read = (_read(source, "train", self.validation) for source in used)
    views = self._views(used, "train", tokenizer, say, read)
    check_ids_of(model, tokenizer.text_vocab, tokenizer.name)
    start = start_of(model, tokenizer)
    weights = [source.get("weight", 1.0) for source in used]
    return Stream(
      views, weights, _maker(start, self.packed),
      spec=self.spec, batch=self.batch, shuffle=self.shuffle,
      skip_steps=self.skip_steps, seed=seed,
      fingerprint=digest(
        "pairs 1", [view.fingerprint for view in views], weights, start,
        self.batch, bool(self.shuffle),
      ),
      tokenizer=tokenizer,
    )  # fmt: skip

  def heldout(
    self, *, split: str, model: Mapping, tokenizer=None,
    sources: list[dict] | None = None, say=print,
  ) -> EvalSet:  # fmt: skip
    """A split of the sources, or of others."""
    tokenizer = tokenizer or self.find_tokenizer(say)
    used = self.used_sources() if sources is None else sources
    read = [_read(s, split, self.validation) for s in used]
    views = self._views(used, split, tokenizer, say, read)
    check_ids_of(model, tokenizer.text_vocab, tokenizer.name)
    start = start_of(model, tokenizer)
    counts = {
      "tokens": sum(view.tokens for view in views),
      "bytes": sum(view.bytes for view in views),
    }
    return EvalSet(
      views, _maker(start, self.packed), spec=self.spec, batch=self.batch,
      fingerprint=digest(
        "pairs heldout 1", [view.fingerprint for view in views], start,
        self.batch,
      ),
      targets=counts["tokens"], counts=counts, recount=_recount,
      texts_fingerprint=texts_fingerprint(_with_text(read)),
      tokenizer=tokenizer,
    )  # fmt: skip

  def known(
    self, *, split, batches, model, tokenizer, fingerprints, texts=(),
    sources=None,
  ) -> EvalSet | None:  # fmt: skip
    """The set that `heldout` gave a run, or None where it is gone.

    texts: as the checkpoints of the run noted its texts_fingerprint; those from
    before there was one did not.
    """
    try:
      found = self.heldout(
        split=split, model=model, tokenizer=tokenizer, sources=sources,
        say=lambda text: None,
      )  # fmt: skip
    except BadData:
      return None
    found = found if batches is None else found.first(batches)
    if texts and found.texts_fingerprint not in texts:
      return None
    return found if found.fingerprint in fingerprints else None

  def texts(self, split: str, sources: list[dict] | None = None) -> list[Pair]:
    """The pairs of a split as texts, for what is written to be compared with.

    All but those with an empty side, whatever their length.
    """
    used = self.used_sources() if sources is None else sources
    return list(_with_text(_read(s, split, self.validation) for s in used))

  def example(self) -> Example:
    """A source that is held out, or else the first one that has text."""
    pairs = itertools.islice(read_pairs(self.used_sources()[0]), LOOKED_AT)
    found = [source for source, _ in pairs if source.strip()]
    apart = (source for source in found if held_out(source, self.validation))
    return Example(text=next(apart, found[0] if found else ""))

  def _views(
    self, sources, split: str, tokenizer, say, read: Iterable[list[Pair]]
  ) -> list["PairRows"]:
    return [
      PairRows(
        source["path"], split, pairs, tokenizer,
        (self.source_length, self.target_length), long=self.long,
        packed=self.packed, say=say,
      )
      for source, pairs in zip(sources, read, strict=True)
    ]  # fmt: skip


def trained_on(
  texts: Iterable[str],
  name: str,
  root: str,
  pieces: int,
  say,
  *,
  called: str = "",
):
  """The SentencePiece of so many pieces for texts, trained where it is missing.

  The texts are kept below root, in the folder `name`; `called` is what a user
  calls them.
  """
  # A zero byte in one of them would make the file of all no text.
  lines = [" ".join(text.replace("\0", " ").split()) for text in texts]
  text = ("\n".join(lines) + "\n").encode("utf-8", "replace")
  sha256 = hashlib.sha256(text).hexdigest()
  path = Path(files.expanded(root), name, f"{sha256[:16]}.txt")
  with files.storage(path, "--config.data.root=FOLDER"):
    if not path.is_file() or files.sha256_file(path) != sha256:
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_bytes(path, text)
  return find_tokenizer(
    sources=[dict(kind="text", path=str(path), split="train", field="text")],
    tokenizer="sentencepiece", tokenizer_vocab=pieces, validation=0.0,
    root=root, called=called, say=say,
  )  # fmt: skip


def _read(source: Mapping, split: str, share: float) -> list[Pair]:
  """The pairs of a split of a source, each once."""
  pairs = dict.fromkeys(read_pairs(source))
  if split == ALL:
    return list(pairs)
  wanted = split == "validation"
  return [pair for pair in pairs if held_out(pair[0], share) == wanted]


def _with_text(read: Iterable[list[Pair]]) -> Iterator[Pair]:
  """The pairs of each source that have no empty side."""
  for pair in itertools.chain.from_iterable(read):
    if all(side.strip() for side in pair):
      yield pair


def texts_fingerprint(pairs: Iterable[Pair]) -> str:
  """sha256 over pairs as they are written, beyond any length too.

  What is written is compared with the whole of them, and a batch has their ids
  as far as there is room, which may be those of other texts as well.
  """
  content = hashlib.sha256(b"pairs 1")
  for pair in pairs:
    content.update(json.dumps(pair).encode() + b"\n")
  return content.hexdigest()


def start_of(model: Mapping, tokenizer) -> int:
  """The token that targets are written after."""
  start = model.get("start_token")
  return tokenizer.eot if start is None else start


def check_ids_of(model: Mapping, needed: int, name: str) -> None:
  vocab = vocab_of(model, needed)
  if vocab < needed:
    raise BadConfig(
      f"model.vocab={vocab}, but the tokenizer ({name}) makes {needed} ids: "
      f"{flags_of(model, 'vocab', needed)}"
    )


def _recount(part: EvalSet) -> tuple[int, dict[str, int]]:
  """(targets, counts) over the batches that a set has."""
  tokens = size = 0
  for index in range(part.batches):
    batch = part.rows(index, slice(None))
    real = batch["targets"][batch["weights"] > 0]
    tokens += len(real)
    size += int(part.tokenizer.byte_lengths[real].sum())
  return tokens, {"tokens": tokens, "bytes": size}


class PairRows:
  """A view: rows of pairs, as ids. What did not fit is said."""

  def __init__(
    self,
    name: str,
    split: str,
    pairs: Iterable[Pair],
    tokenizer,
    lengths: tuple[int, int],
    *,
    long: str,
    packed: bool,
    say: Callable[[str], None],
  ):
    self.name, self.lengths = name, lengths
    self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
    content = hashlib.sha256(
      f"{tokenizer.fingerprint} {lengths} {long} {packed}".encode()
    )
    empty = beyond = 0
    for texts in pairs:
      if not all(text.strip() for text in texts):
        empty += 1
        continue
      sides = [
        np.append(tokenizer.encode(text), tokenizer.eot).astype(np.int32)
        for text in texts
      ]
      too_long = any(
        len(side) > n for side, n in zip(sides, lengths, strict=True)
      )
      beyond += too_long
      if too_long and long == "left_out":
        continue
      sides = [side[:n] for side, n in zip(sides, lengths, strict=True)]
      for side in sides:
        content.update(len(side).to_bytes(8, "big") + side.tobytes())
      self.pairs.append(tuple(sides))
    self.rows = (
      _packed(self.pairs, lengths)
      if packed
      else [[i] for i in range(len(self.pairs))]
    )
    self.fingerprint = content.hexdigest()
    self.tokens = sum(len(target) for _, target in self.pairs)
    self.bytes = sum(
      int(tokenizer.byte_lengths[target].sum()) for _, target in self.pairs
    )
    told = []
    if beyond:
      so = "had a side cut" if long == "cut" else _left_out(beyond)
      told.append(f"{beyond:,} with a side that is longer {so}")
    if empty:
      told.append(f"{empty:,} with an empty side {_left_out(empty)}")
    say(
      f"{name!r} ({split}): {counted(len(self.pairs), 'pair')} in "
      f"{counted(len(self.rows), 'row')} of "
      f"{lengths[0]} and {lengths[1]} tokens"
      + (f"; {', '.join(told)}" if told else "")
    )
    if beyond and not self.pairs:
      raise BadData(
        f"{name}: no pair fits data.source_length={lengths[0]} and "
        f"data.target_length={lengths[1]}: raise them, or data.long='cut'"
      )
    if empty and not self.pairs:
      raise BadData(f"{name}: no pair whose sides both have text")
    if not self.pairs:
      raise BadData(
        f"{name}: it has no pair, or too few for both parts: hold out more or "
        "less (data.validation=0.05, say), or none (data.validation=0)"
      )

  def __len__(self) -> int:
    return len(self.rows)

  def gather(self, numbers: np.ndarray) -> Records:
    """ "source", "target" (n, length) int32, and which pair of its row each
    token is of, "source_pair", "target_pair": from 1, 0 for padding."""
    names = ("source", "target")
    found = {
      name + end: np.zeros((len(numbers), n), np.int32)
      for name, n in zip(names, self.lengths, strict=True)
      for end in ("", "_pair")
    }
    for i, number in enumerate(numbers.tolist()):
      at = [0, 0]
      for k, pair in enumerate(self.rows[number] if number >= 0 else (), 1):
        for side, name in enumerate(names):
          ids = self.pairs[pair][side]
          here = slice(at[side], at[side] + len(ids))
          found[name][i, here], found[name + "_pair"][i, here] = ids, k
          at[side] += len(ids)
    return found


def _left_out(n: int) -> str:
  return "was left out" if n == 1 else "were left out"


def _packed(pairs, lengths: tuple[int, int]) -> list[list[int]]:
  """Pairs in rows: each into the first open row that has room on both sides."""
  rows: list[list[int]] = []
  opened: list[tuple[list[int], list[int]]] = []  # (row, room on each side)
  for i, sides in enumerate(pairs):
    sizes = [len(side) for side in sides]
    fits = (r for r in opened if all(np.less_equal(sizes, r[1])))
    row, room = next(fits, (None, None))
    if row is None:
      row, room = [], list(lengths)
      rows.append(row)
      opened.append((row, room))
      if len(opened) > OPEN:  # the fullest will hardly take another
        opened.remove(min(opened, key=lambda r: min(r[1])))
    row.append(i)
    room[:] = [have - n for n, have in zip(sizes, room, strict=True)]
  return rows


def _maker(start: int, packed: bool) -> Callable[[Records, Draw], Batch]:
  return lambda records, draw: to_batch(records, start=start, packed=packed)


def to_batch(records: Records, *, start: int, packed: bool) -> Batch:
  """The batch of `PairRows.gather`'s records, as this file begins with."""
  targets, segments = records["target"], records["target_pair"]
  first = segments != np.pad(segments, ((0, 0), (1, 0)))[:, :-1]
  moved = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  batch = {
    "encoder_tokens": records["source"],
    "encoder_segments": records["source_pair"],
    "tokens": np.where(first, start, moved).astype(np.int32),
    "segments": segments,
    "targets": targets,
    "weights": (segments > 0).astype(np.float32),
  }
  if packed:
    for prefix in ("encoder_", ""):
      batch[prefix + "positions"] = _positions(batch[prefix + "segments"])
  return batch


def _positions(segments: np.ndarray) -> np.ndarray:
  """From 0 in each segment."""
  at = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
  before = np.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  begins = np.where(segments != before, at, 0)
  return (at - np.maximum.accumulate(begins, axis=1)).astype(np.int32)
