"""Utterances as data: sound, and what is said in it, to be heard or spoken.

A batch is a dict of global arrays; B is the batch, A how many samples a row
has, T how many tokens. A text ends with the tokenizer's end of text.

  audio          (B, A) int16    samples at 16 kHz, 0 behind the utterance
  audio_lengths  (B,) int32      how many are of the utterance
  tokens         (B, T) int32    targets, moved on by a start token
  targets        (B, T) int32    what is said
  weights        (B, T) float32  1, and 0 in the padding
  speakers       (B,) int32      with speakers=True: who says it
  draw           (B, 2) uint32   with draw=True: a key for noise in a loss
  masks          (B, M, 4) int32 with masks in augment: what is hidden of a
                                 spectrogram (augmenting.py); of M of no size
                                 nothing, as in held-out sets

A speaker is the first folder of a file's name; their numbers are from 0 in the
order of the names of all that the source has, in whichever split.

An utterance that is longer than a row, in samples or in tokens, is left out and
told: half of its text would not be half of its sound.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.data import kept
from aigc_jax.data.columns import Columns, told, write
from aigc_jax.data.draw import Draw
from aigc_jax.data.entries import check_source
from aigc_jax.data.example import Example
from aigc_jax.data.listing import check_apart, check_local
from aigc_jax.data.pairs import check_ids_of, start_of, trained_on
from aigc_jax.data.sound import sources
from aigc_jax.data.sound.augmenting import Augment
from aigc_jax.data.sound.decoding import CHANNELS, RATE
from aigc_jax.data.sound.sources import How
from aigc_jax.data.sound.utterances import HOP, Utterances, to_batch
from aigc_jax.data.spec import Array, Spec
from aigc_jax.data.stream import (
  EvalSet,
  Stream,
  check_batch,
  digest,
)
from aigc_jax.data.tasks import Batch, Records
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import BadConfig, BadData, choose, nearest
from aigc_jax.signature import call, check_type, expect
from aigc_jax.terminal import counted, duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
  """What `data` of a config says of utterances; see presets/sound.py.

  Opens and prepares nothing by itself. Raises BadConfig for what no data could
  mend.
  """

  sources: Sequence[Mapping]
  tokenizer: str
  tokenizer_vocab: int
  batch: int
  seconds: float
  target_length: int
  channels: str
  shuffle: bool
  validation: float
  split_by: str
  most_damaged: float
  root: str
  skip_steps: Sequence[Sequence[int] | int]
  speakers: bool = False  # whether a batch says who speaks
  draw: bool = False  # whether a batch has a key for each row
  augment: Mapping = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    _ = self.augmentation
    check_batch(batch=self.batch, target_length=self.target_length)
    choose(self.channels, dict.fromkeys(CHANNELS), "data.channels")
    choose(self.split_by, dict.fromkeys(sources.SPLIT_BY), "data.split_by")
    if not 0 < self.seconds <= 3600 or self.samples < HOP:
      raise BadConfig(
        f"data.seconds={self.seconds}: expected above 0.01, up to 3600"
      )
    for key in ("validation", "most_damaged"):
      if not 0 <= getattr(self, key) < 1:
        raise BadConfig(
          f"data.{key}={getattr(self, key)}: expected 0 to below 1"
        )
    for i, source in enumerate(self.sources):
      check_type(f"data.sources[{i}]", source, Mapping)
      check_source(f"data.sources[{i}]", source, sources.SOURCES)
    if self.speakers and len(self.sources) > 1:
      raise BadConfig(
        "data.speakers=True numbers the speakers of one source: put the "
        "folders of several into one, a folder for each speaker"
      )

  @property
  def augmentation(self) -> Augment:
    return call(Augment, "data.augment", dict(self.augment))

  @property
  def samples(self) -> int:
    """How many a row has."""
    return round(self.seconds * RATE)

  @property
  def spec(self) -> Spec:
    """What a batch is."""
    B, T = self.batch, self.target_length
    integer, number = np.dtype(np.int32), np.dtype(np.float32)
    found = {
      "audio": Array("B.", (B, self.samples), np.dtype(np.int16)),
      "audio_lengths": Array("B", (B,), integer),
      "tokens": Array("BT", (B, T), integer),
      "targets": Array("BT", (B, T), integer),
      "weights": Array("BT", (B, T), number),
    }
    if self.speakers:
      found["speakers"] = Array("B", (B,), integer)
    if self.draw:
      found["draw"] = Array("B.", (B, 2), np.dtype("u4"))
    if self.augmentation.hidden:
      found["masks"] = Array("B..", (B, self.augmentation.hidden, 4), integer)
    return found

  @property
  def units(self) -> dict[str, int]:
    """What a batch counts as consumed."""
    return {"examples": self.batch}

  @property
  def holds_nothing_out(self) -> bool:
    """Whether there is no validation split, as data.validation=0 asks for."""
    return not self.validation

  def used_sources(self) -> list[dict]:
    """The sources. Raises BadConfig where there are none."""
    if not self.sources:
      raise BadConfig(
        "no data: name data.sources in the config, such as dict(kind='folder', "
        "path=PATH) of sound files with a .txt beside each"
      )
    return [dict(source) for source in self.sources]

  def check_model(self, model: Mapping) -> None:
    """Raises BadConfig where the model cannot take what the data gives."""
    self._check_sizes(model)
    if self.tokenizer != "sentencepiece":
      check_text_model(model, load_tokenizer(self.tokenizer))

  def _check_sizes(self, model: Mapping) -> None:
    most = model.get("seconds")
    if most is not None and most < self.seconds:
      raise BadConfig(
        f"data.seconds={self.seconds}, but the model hears model.seconds="
        f"{most} at most: --config.data.seconds={most}, or a larger model"
      )
    positions = model.get("position_length")
    if positions is not None and positions < self.target_length:
      raise BadConfig(
        f"data.target_length={self.target_length}, but the model writes "
        f"model.position_length={positions} tokens at most: "
        f"--config.data.target_length={positions}"
      )
    how, bins = self.augmentation, model.get("bins")
    if how.hidden and not bins:
      raise BadConfig(
        "data.augment.times and bands hide parts of a spectrogram, and the "
        "model makes none: set both to 0"
      )
    if how.bands and how.band_width > bins:
      raise BadConfig(
        f"data.augment.band_width={how.band_width}, but the model hears "
        f"model.bins={bins} bands: --config.data.augment.band_width="
        f"{max(bins // 3, 1)}"
      )
    if model.get("speakers") and not self.speakers:
      raise BadConfig(
        f"model.speakers={model['speakers']}, but the data does not say who "
        "speaks: --config.data.speakers=True, or --config.model.speakers=0"
      )

  def check_heldout(self, section: str, which: Mapping) -> None:
    """Raises BadConfig for what `heldout` could not open."""
    own = "sources" in which
    expect(section, which, ("split", "sources") if own else ("split",))
    if own and self.speakers:
      raise BadConfig(
        f"{section}.sources: the speakers of another source have no numbers "
        "here (data.speakers=True): leave it out"
      )
    for i, source in enumerate(which.get("sources", ())):
      check_type(f"{section}.sources[{i}]", source, Mapping)
      check_source(f"{section}.sources[{i}]", source, sources.SOURCES)
    split = which["split"]
    if split not in sources.SPLITS:
      raise BadConfig(
        f"{section}.split={split!r}{nearest(split, sources.SPLITS)} "
        f"(there are: {', '.join(sources.SPLITS)})"
      )

  def check_workdir(self, workdir: str) -> None:
    """Raises BadConfig for a work directory that is the sound's own folder."""
    paths = [source["path"] for source in self.sources]
    check_apart(workdir, paths, "the sound itself")

  def prepared(self) -> list[dict] | None:
    """[{"examples": n}] of the training stores; None if one is missing."""
    try:
      folders = [
        self._folder(self._open(source), "train") for source in self.sources
      ]
    except BadData:
      return None
    if not all(folder.is_dir() for folder in folders):
      return None
    return [{"examples": len(self._opened(folder))} for folder in folders]

  def find_tokenizer(self, say=print):
    """The tokenizer, trained where it is missing."""
    if self.tokenizer != "sentencepiece":
      return load_tokenizer(self.tokenizer)
    store = self._store(self.used_sources()[0], "train", say, None)
    texts = [text.decode() for text in store.column("text")]
    return trained_on(
      texts,
      "sound",
      self.root,
      self.tokenizer_vocab,
      say,
      called="what is said",
    )

  def stream(self, *, seed: int, model: Mapping, say=print, progress=None):
    """The training data, prepared where it is missing; model: config.model."""
    tokenizer = self.find_tokenizer(say)
    self._check_sizes(model)
    check_text_model(model, tokenizer)
    used = self.used_sources()
    views = [
      self._view(self._store(source, "train", say, progress), tokenizer, model)
      for source in used
    ]
    for view in views:
      view.tell(say)
    start = start_of(model, tokenizer)
    weights = [source.get("weight", 1.0) for source in used]
    return Stream(
      views, weights, self._maker(start, model), spec=self.spec,
      batch=self.batch, shuffle=self.shuffle, skip_steps=self.skip_steps,
      seed=seed,
      fingerprint=digest(
        "sound 1", [view.fingerprint for view in views], weights, start,
        self.batch, bool(self.shuffle), *self._drawn, *self._augmented(model),
      ),
      tokenizer=tokenizer,
    )  # fmt: skip

  def heldout(
    self, *, split: str, model: Mapping, tokenizer=None,
    sources: Sequence[Mapping] | None = None, say=print,
  ) -> EvalSet:  # fmt: skip
    """A split of the sources, or of others; what is missing is prepared."""
    tokenizer = tokenizer or self.find_tokenizer(say)
    self._check_sizes(model)
    check_text_model(model, tokenizer)
    given = self.used_sources() if sources is None else sources
    stores = [self._store(source, split, say, None) for source in given]
    found = self._eval_of(stores, tokenizer, model)
    for view in found.views:
      view.tell(say)
    return found

  def known(
    self, *, split: str, batches: int | None, model: Mapping, tokenizer,
    fingerprints: Sequence[str], sources: Sequence[Mapping] | None = None,
  ) -> EvalSet | None:  # fmt: skip
    """The set that `heldout` gave a run, or None where it is gone.

    Only stores below `root` are read: no source is, and nothing is written.
    """
    check_local(self.root, "data.root")
    folder = files.expanded(self.root) / "sound"
    stores = kept.stores_in(folder, self._opened)
    count = len(self.sources if sources is None else sources)
    found = kept.known_set(
      kept.choices([kept.of_split(stores, split)] * count),
      fingerprints,
      batches,
      lambda choice: self._eval_fingerprint(choice, tokenizer, model),
      lambda choice: self._eval_of(choice, tokenizer, model),
    )
    return None if found is None else found[1]

  def utterances(
    self, *, split: str, model: Mapping, tokenizer,
    sources: Sequence[Mapping] | None = None, say=print,
  ) -> list["Utterances"]:  # fmt: skip
    """What `heldout` has, one by one, for transcripts to be compared with."""
    found = self.heldout(
      split=split, model=model, tokenizer=tokenizer, sources=sources, say=say
    )
    return found.views

  def _eval_of(self, stores, tokenizer, model: Mapping) -> EvalSet:
    views = [self._view(store, tokenizer, model) for store in stores]
    return EvalSet(
      views, self._maker(start_of(model, tokenizer)), spec=self.spec,
      batch=self.batch,
      fingerprint=self._eval_fingerprint(stores, tokenizer, model),
      targets=None, counts={"examples": sum(map(len, views))},
      recount=_recount, tokenizer=tokenizer,
    )  # fmt: skip

  def _eval_fingerprint(self, stores, tokenizer, model: Mapping) -> str:
    prints = [self._view_print(store, tokenizer, model) for store in stores]
    start = start_of(model, tokenizer)
    return digest("sound evalset 1", prints, start, self.batch, *self._drawn)

  @property
  def _drawn(self) -> list[str]:
    return ["draw"] if self.draw else []

  def _view(self, store: Columns, tokenizer, model: Mapping) -> "Utterances":
    if self.speakers:
      check_speakers(store, model)
    return Utterances(
      store, tokenizer, samples=self.samples, tokens=self.target_length,
      stride=model.get("stride"),
      fingerprint=self._view_print(store, tokenizer, model),
    )  # fmt: skip

  def _view_print(self, store: Columns, tokenizer, model: Mapping) -> str:
    return digest(
      store.fingerprint, tokenizer.fingerprint, self.samples,
      self.target_length, model.get("stride"),
    )  # fmt: skip

  def _open(self, source: Mapping):
    how = How(
      self.validation, self.split_by, self.most_damaged, self.channels,
      self.speakers,
    )  # fmt: skip
    return sources.open_source(source, how)

  def example(self) -> Example:
    """An utterance that fits a row: what is said in it, and its file."""
    found = self._open(self.used_sources()[0]).example(self.seconds)
    if found is None:
      return Example()
    return Example(" ".join(found.text.split()), str(found.path))

  def _folder(self, source, split: str) -> Path:
    check_local(self.root, "data.root")
    key = digest(
      "sound store 1", source.fingerprint, source.division, split,
      self.most_damaged, self.channels,
      *(["speakers"] if self.speakers else []),
    )[:16]  # fmt: skip
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in source.name)
    name = f"{safe[:40] or 'sound'}-{split}-{key}"
    return files.expanded(self.root) / "sound" / name

  def _opened(self, folder: Path) -> Columns:
    """A store of utterances. Raises BadData."""
    about = {"speakers": [str]} if self.speakers else dict
    return Columns(folder, sources.columns_of(self.speakers), about)

  def _store(self, spec: Mapping, split: str, say, progress) -> Columns:
    source = self._open(spec)
    folder = self._folder(source, split)
    if folder.is_dir():
      store = self._opened(folder)
    else:
      say(f"preparing the utterances of {source.name!r} ({split})")
      store = write(folder, source, split, say=say, progress=progress)
      m = store.manifest
      if m["left_out"]:
        say(f"{source.name!r} ({split}): {told(m['left_out'])}")
      seconds = store.column("samples").sum(dtype=np.int64) / RATE
      say(
        f"{source.name!r} ({split}): {counted(m['records'], 'utterance')}, "
        f"{duration(seconds)}: {folder}"
      )
    store.check(say, progress)
    return store

  def _augmented(self, model: Mapping) -> list:
    """What decides how training utterances are changed; nothing if none is."""
    how = self.augmentation
    if how == dataclasses.replace(how, speed=0, gain=0.0, times=0, bands=0):
      return []
    bins = model["bins"] if how.bands else None
    return [dataclasses.asdict(how), bins]

  def _maker(
    self, start: int, model: Mapping | None = None
  ) -> Callable[[Records, Draw], Batch]:
    """Of training with a model, or of held-out sets, which stay as they are."""
    how = self.augmentation

    def make(records: Records, draw: Draw) -> Batch:
      if model is not None:
        clips = [np.frombuffer(data, "<i2") for data in records["audio"]]
        records = records | {"audio": how.heard(clips, self.samples, draw)}
      batch = to_batch(records, start, self.samples)
      if self.draw:
        batch["draw"] = draw.keys("draw")
      if how.hidden:
        n = len(batch["audio_lengths"])
        masks = np.zeros((n, how.hidden, 4), np.int32)
        if model is not None:
          masks = how.masks(batch["audio_lengths"], model["bins"], draw)
        batch["masks"] = masks
      return batch

    return make


def _recount(part: EvalSet) -> tuple[None, dict[str, int]]:
  """(targets, counts) of a set with fewer batches."""
  return None, {"examples": len(part)}


def check_text_model(model: Mapping, tokenizer) -> None:
  """Raises BadConfig where the model's ids are not those of the tokenizer."""
  check_ids_of(model, tokenizer.text_vocab, tokenizer.name)
  blank = model.get("blank")
  if blank is None or blank == tokenizer.eot or blank >= tokenizer.text_vocab:
    return
  raise BadConfig(
    f"model.blank={blank} is an id that texts have; the end of text is none: "
    f"--config.model.blank={tokenizer.eot}"
  )


def check_speakers(store: Columns, model: Mapping) -> None:
  """Raises BadConfig where a model that tells speakers apart has too few."""
  numbers = store.column("speaker")
  known = len(store.about["speakers"])
  if len(numbers) and not 0 <= numbers.min() <= numbers.max() < known:
    raise store.contradiction(
      f"speakers from {numbers.min()} to {numbers.max()} of {known}"
    )
  names, room = store.manifest["about"].get("speakers"), model.get("speakers")
  if not isinstance(names, list):
    raise BadData(f"{store.name}: the store does not say who speaks")
  if room is not None and room < len(names):
    raise BadConfig(
      f"model.speakers={room}, and the data has {len(names)}: "
      f"--config.model.speakers={len(names)}"
    )
