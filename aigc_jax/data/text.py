"""Text as data: token stores, cut into windows, for any task of windows.

A batch is a dict of global arrays; B is the batch, T the length. With the task
next_token:

  tokens     (B, T) int32    what the model sees
  targets    (B, T) int32    what it should say at each position
  weights    (B, T) float32  how much each target counts; 0 is padding
  positions  (B, T) int32    with segments only: from 0 in each document
  segments   (B, T) int32    with segments only: the document, from 1; 0 padding
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from aigc_jax.data.documents import ALL
from aigc_jax.data.entries import whole
from aigc_jax.data.example import LOOKED_AT, WORDS, Example
from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.known import find_eval
from aigc_jax.data.listing import check_apart
from aigc_jax.data.preparation import find_tokenizer, open_stores, prepared
from aigc_jax.data.sources import SOURCES, open_source
from aigc_jax.data.spec import Spec
from aigc_jax.data.stream import EvalSet, Stream, check_batch
from aigc_jax.data.tasks import task_of
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.data.windows import (
  GIVEN,
  batch_spec,
  check_task,
  check_vocab,
  eval_of,
  stream_of,
)
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.signature import check_type, expect, kind_of

SPLITS = ("train", "validation", ALL)  # what sources other than TFDS have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """What `data` of a config says of text; its keys are explained there.

  Opens and prepares nothing by itself. Raises BadConfig for what no text could
  mend.
  """

  sources: Sequence[Mapping]
  path: str | None
  field: str
  tokenizer: str
  tokenizer_vocab: int
  task: Mapping
  batch: int
  length: int
  segments: bool
  shuffle: bool
  validation: float
  validation_path: str | None
  root: str
  skip_steps: Sequence[Sequence[int] | int]

  def __post_init__(self):
    check_batch(batch=self.batch, length=self.length)
    batch_spec(self.task, self.batch, self.length, self.segments)

  @property
  def spec(self) -> Spec:
    """What a batch is."""
    return batch_spec(self.task, self.batch, self.length, self.segments)

  @property
  def units(self) -> dict[str, int]:
    """What a batch counts as consumed."""
    return {"examples": self.batch, "tokens": self.batch * self.length}

  @property
  def paths(self) -> list[str]:
    """The files and folders that are read, as the config names them."""
    found = [s["path"] for s in self.used_sources() if s["kind"] == "text"]
    return [path for path in found if path]

  @property
  def holds_nothing_out(self) -> bool:
    """Whether there is no validation split, as data.validation=0 asks for."""
    if self.validation or self.validation_path:
      return False
    return all(source["kind"] == "text" for source in self.used_sources())

  def used_sources(self) -> list[dict]:
    """The sources; `data.path` is short for one source of text."""
    if self.path:
      source = dict(kind="text", path=self.path, split="train")
      return [source | dict(field=self.field, weight=1.0)]
    if not self.sources:
      raise BadConfig(
        "no data: set --config.data.path=PATH (a file, folder or glob), or "
        "data.sources in the config"
      )
    return list(map(_whole, self.sources))

  def arguments(self) -> dict:
    """What says which stores are trained on, for `prepare`.

    Nothing of them is held out where there is held-out text of one's own.
    """
    share = 0.0 if self.validation_path else self.validation
    return {
      "sources": self.used_sources(),
      "validation": share,
      "tokenizer": self.tokenizer,
      "tokenizer_vocab": self.tokenizer_vocab,
      "root": self.root,
      "special": task_of(self.task, GIVEN)[0].special,
    }

  def example(self) -> Example:
    """The first words of the data."""
    spec = self.used_sources()[0]
    source = open_source(
      dict(spec), validation=self.validation or 0.0, root=self.root,
      say=lambda text: None,
    )  # fmt: skip
    for job in source.jobs(spec["split"]):
      for document in source.read(job, spec["split"]):
        text = document.data[:LOOKED_AT].decode("utf-8", "replace")
        if words := text.split():
          return Example(text=" ".join(words[:WORDS]))
    return Example()

  def heldout_arguments(self, split: str) -> dict:
    """What says which stores `split` is: sources and split.

    `validation_path` is the validation split, all of it.
    """
    if split != "validation" or not self.validation_path:
      return {"sources": self.used_sources(), "split": split}
    source = dict(kind="text", path=self.validation_path, split=ALL)
    source |= dict(field=self.field, weight=1.0)
    return {"sources": [source], "split": ALL}

  def check_model(self, model: Mapping) -> None:
    """Raises BadConfig where the model or the tokenizer lacks what is needed.

    The model as many ids as the tokenizer, that one what the task needs.
    """
    needed = self.tokenizer_vocab
    if self.tokenizer != "sentencepiece":
      tokenizer = load_tokenizer(self.tokenizer)
      needed = tokenizer.text_vocab
      check_task(self.task, tokenizer, model)
    vocab = vocab_of(model, needed)
    if vocab < needed:
      raise BadConfig(
        f"model.vocab={vocab}, but the tokenizer ({self.tokenizer}) makes "
        f"{needed} ids: {flags_of(model, 'vocab', needed)}"
      )

  def check_heldout(self, section: str, which: Mapping) -> None:
    """Raises BadConfig for what `heldout` could not open.

    which: {"split": ...} and perhaps "sources", as `section` of the config has
    it. Other than TFDS, whose datasets name their own, sources have SPLITS.
    """
    own = "sources" in which
    expect(section, which, ("split", "sources") if own else ("split",))
    where = section if own else "data"
    sources = which["sources"] if own else self.used_sources()
    for i, source in enumerate(sources):
      check_type(f"{where}.sources[{i}]", source, Mapping)
      kind_of(f"{where}.sources[{i}]", source, SOURCES)
    kinds, split = [source["kind"] for source in sources], which["split"]
    if "tfds" not in kinds and split not in SPLITS:
      raise BadConfig(
        f"{section}.split={split!r}{nearest(split, SPLITS)} "
        f"(there are: {', '.join(SPLITS)})"
      )

  def find_tokenizer(self, say=print):
    """The tokenizer, trained where it is missing."""
    return find_tokenizer(**self.arguments(), say=say)

  def prepared(self) -> list[dict] | None:
    """The manifests of the training stores, or None where one is missing."""
    return prepared(**self.arguments())

  def stream(self, *, seed: int, model: Mapping, say=print, progress=None):
    """The training data, prepared where it is missing.

    model: config.model, which must have as many ids as the text needs.
    """
    found = build(
      **self.arguments(),
      **self._windows(),
      shuffle=self.shuffle,
      skip_steps=self.skip_steps,
      seed=seed,
      say=say,
      progress=progress,
    )
    self._check_ids(found, model)
    return found

  def heldout(
    self,
    *,
    split: str,
    model: Mapping,
    tokenizer=None,
    sources: list[dict] | None = None,
    say=print,
  ) -> EvalSet:
    """A split of the sources, or of others; what is missing is prepared.

    tokenizer: of the run, where it is at hand; other sources need it, for a
    tokenizer trained on those of the run knows nothing of them.
    """
    arguments = self.arguments()
    if tokenizer is None:
      tokenizer = self.find_tokenizer(say)
    if sources is None:
      arguments |= self.heldout_arguments(split)
    else:
      arguments |= {"sources": list(map(_whole, sources)), "split": split}
    arguments["tokenizer"] = tokenizer
    found = build_eval(**arguments, **self._windows(), say=say)
    self._check_ids(found, model)
    return found

  def known(
    self,
    *,
    split: str,
    batches: int | None,
    model: Mapping,
    tokenizer,
    fingerprints: Sequence[str],
    texts: Sequence[str] = (),
    sources: list[dict] | None = None,
  ) -> EvalSet | None:
    """The set that `heldout` gave a run, or None where it is gone.

    fingerprints, texts: as the checkpoints of the run noted them; those from
    before there was a texts_fingerprint did not. Only stores below `root` are
    read: no source is, and nothing is written.
    """
    if sources is None:
      arguments = self.heldout_arguments(split)
      sources, split = arguments["sources"], arguments["split"]
    found = find_eval(
      fingerprints,
      splits=[split] * len(sources),
      batches=batches,
      tokenizer=tokenizer,
      root=self.root,
      texts=texts,
      **self._windows(),
    )
    if found is not None:
      self._check_ids(found, model)
    return found

  def _check_ids(self, found: Stream | EvalSet, model: Mapping) -> None:
    check_vocab(found, model)
    check_task(self.task, found.tokenizer, model)

  def _windows(self) -> dict:
    names = ("task", "batch", "length", "segments")
    return {name: getattr(self, name) for name in names}

  def check_workdir(self, workdir: str) -> None:
    """Raises BadConfig for a work directory that is the folder of the text."""
    why = ": the run would train on what it writes"
    check_apart(workdir, self.paths, "the text itself", why)


def _whole(source: Mapping) -> dict:
  """An entry with what its kind has by default; as it is without a kind."""
  if not isinstance(source, Mapping) or not isinstance(source.get("kind"), str):
    return source  # refused by name, where it is checked
  return whole(source, SOURCES.get(source["kind"], (None, ()))[1])


def build(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  task: Mapping,
  batch: int,
  length: int,
  segments: bool,
  shuffle: bool,
  validation: float,
  root: str,
  skip_steps,
  seed: int,
  say: Callable = print,
  workers: int = 0,
  progress=None,
  special: Sequence[str] = (),
) -> Stream:
  """The training stream of `sources`; missing stores are prepared.

  Raises BadConfig and BadData as the parts do; see `prepare` and `Stream`.
  """
  found, stores = open_stores(
    sources=sources,
    tokenizer=tokenizer,
    tokenizer_vocab=tokenizer_vocab,
    validation=validation,
    root=root,
    split=None,
    workers=workers,
    say=say,
    progress=progress,
    special=special,
  )
  return stream_of(
    stores,
    [source.get("weight", 1.0) for source in sources],
    found,
    task=task,
    batch=batch,
    length=length,
    segments=segments,
    shuffle=shuffle,
    skip_steps=skip_steps,
    seed=seed,
  )


def build_eval(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  task: Mapping,
  split: str,
  batch: int,
  length: int,
  segments: bool,
  validation: float,
  root: str,
  say: Callable = print,
  workers: int = 0,
  progress=None,
  special: Sequence[str] = (),
) -> EvalSet:
  """`split` of all the sources as a set that is read exactly once.

  Stores that are missing are prepared; `find_eval` only looks.
  """
  found, stores = open_stores(
    sources=sources,
    tokenizer=tokenizer,
    tokenizer_vocab=tokenizer_vocab,
    validation=validation,
    root=root,
    split=split,
    workers=workers,
    say=say,
    progress=progress,
    special=special,
  )
  return eval_of(
    stores, found, task=task, batch=batch, length=length, segments=segments
  )
