"""Images with labels as data: stores of encoded images, decoded on the host.

A batch is a dict of global arrays; B is the batch:

  images        (B, Y, X, C) float32  minus the mean, over the deviation
  labels        (B,) int32
  weights       (B,) float32          1, and 0 where a held-out batch is padded
  other_labels  (B,) int32            where images are mixed: the second label
  share         (B,) float32          and the share of the first
  draw          (B, 2) uint32         with draw=True: a key for noise in a loss
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from aigc_jax import files
from aigc_jax.data import kept
from aigc_jax.data.columns import Columns, told, write
from aigc_jax.data.draw import Draw
from aigc_jax.data.entries import check_source, wholes
from aigc_jax.data.ids import flags_of
from aigc_jax.data.images import augmenting, sources
from aigc_jax.data.images.augmenting import Augment
from aigc_jax.data.images.decoding import MODES, Unusable, decoded, pixels
from aigc_jax.data.listing import check_apart, check_local
from aigc_jax.data.spec import Array, Spec
from aigc_jax.data.stream import (
  EvalSet,
  Stream,
  check_batch,
  digest,
)
from aigc_jax.errors import BadConfig, BadData, nearest
from aigc_jax.signature import call, check_type, expect
from aigc_jax.terminal import counted

SPLITS = ("train", "validation", "test", "all")
THREADED = 16 << 10  # bytes of a file from which decoding takes threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
  """What `data` of a config says of images; see presets/images.py.

  Opens and prepares nothing by itself. Raises BadConfig for what no data could
  mend.
  """

  sources: Sequence[Mapping]
  batch: int
  image_size: int
  channels: int
  crop: float
  mean: Sequence[float]
  std: Sequence[float]
  augment: Mapping
  shuffle: bool
  validation: float
  most_damaged: float
  root: str
  skip_steps: Sequence[Sequence[int] | int]
  draw: bool = False  # whether a batch has a key for each row

  # Of what kinds sources are, and the folder of stores below root.
  kinds: ClassVar[Mapping] = sources.SOURCES
  place: ClassVar[str] = "images"

  def __post_init__(self):
    check_batch(batch=self.batch, image_size=self.image_size)
    if self.channels not in MODES:
      raise BadConfig(f"data.channels={self.channels}: expected 1 or 3")
    self._check_scale()
    for key in ("validation", "most_damaged"):
      if not 0 <= getattr(self, key) < 1:
        raise BadConfig(
          f"data.{key}={getattr(self, key)}: expected 0 to below 1"
        )
    if not 0 < self.crop <= 1:
      raise BadConfig(f"data.crop={self.crop}: expected above 0, up to 1")
    if not self.sources:
      raise BadConfig("data.sources is empty: name at least one source")
    for i, source in enumerate(self.sources):
      check_type(f"data.sources[{i}]", source, Mapping)
      check_source(f"data.sources[{i}]", source, self.kinds)
    object.__setattr__(self, "sources", wholes(self.sources, self.kinds))
    _ = self.augmentation

  def _check_scale(self) -> None:
    """BadConfig for numbers that are none of the channels; of both at once."""
    wrong, ways = [], []
    for key in ("mean", "std"):
      values, above = getattr(self, key), key == "std"
      if len(values) == self.channels and not (above and min(values) <= 0):
        continue
      wrong.append(
        f"data.{key}={tuple(values)}: expected "
        f"{counted(self.channels, 'number')}, one for each of data.channels"
        f"{', above 0' if above else ''}"
      )
      alike = len(set(values)) == 1 and values[0] > 0
      many = f"{values[0] if alike else 0.5}," * self.channels
      ways.append(f"--config.data.{key}='({many})'")
    if wrong:
      raise BadConfig(f"{'; '.join(wrong)} (such as {' '.join(ways)})")

  @functools.cached_property
  def augmentation(self) -> Augment:
    return call(Augment, "data.augment", dict(self.augment))

  @property
  def spec(self) -> Spec:
    """What a training batch is."""
    return self._spec(self.augmentation.mixes)

  def _spec(self, mixes: bool) -> Spec:
    B, S = self.batch, self.image_size
    row = lambda kind: Array("B", (B,), np.dtype(kind))  # noqa: E731
    found = {
      "images": Array("BYXC", (B, S, S, self.channels), np.dtype("f4")),
      **self._spec_beside(),
      "weights": row("f4"),
    }
    if mixes:
      found |= {"other_labels": row("i4"), "share": row("f4")}
    if self.draw:
      found["draw"] = Array("B.", (B, 2), np.dtype("u4"))
    return found

  def _spec_beside(self) -> Spec:
    """What a batch has beside images and weights."""
    return {"labels": Array("B", (self.batch,), np.dtype("i4"))}

  @property
  def units(self) -> dict[str, int]:
    """What a batch counts as consumed."""
    return {"examples": self.batch}

  @property
  def holds_nothing_out(self) -> bool:
    return False

  def check_model(self, model: Mapping) -> None:
    """Raises BadConfig where the model takes images of another size."""
    for key in ("image_size", "channels"):
      wanted, given = model.get(key), getattr(self, key)
      if wanted is not None and wanted != given:
        raise BadConfig(
          f"model.{key}={wanted}, but the data gives {given}: "
          f"--config.model.{key}={given} or --config.data.{key}={wanted}"
        )

  def check_heldout(self, section: str, which: Mapping) -> None:
    """Raises BadConfig for what `heldout` could not open."""
    own = "sources" in which
    expect(section, which, ("split", "sources") if own else ("split",))
    for i, source in enumerate(which.get("sources", ())):
      check_type(f"{section}.sources[{i}]", source, Mapping)
      check_source(f"{section}.sources[{i}]", source, self.kinds)
    split, given = which["split"], which.get("sources", self.sources)
    tfds = any(source["kind"] == "tfds" for source in given)
    if split not in SPLITS and not tfds:
      raise BadConfig(
        f"{section}.split={split!r}{nearest(split, SPLITS)} "
        f"(there are: {', '.join(SPLITS)})"
      )

  def check_workdir(self, workdir: str) -> None:
    """Raises BadConfig for a work directory that is the images' own folder."""
    paths = [s["path"] for s in self.sources if s.get("path")]
    check_apart(workdir, paths, "the images itself")

  def prepared(self) -> list[dict] | None:
    """[{"examples": n}] of the training stores; None if one is missing."""
    try:
      folders = [
        self._folder(s, s["split"], self._open(s)) for s in self.sources
      ]
    except BadData:
      return None
    if not all(folder.is_dir() for folder in folders):
      return None
    return [{"examples": len(self._opened(folder))} for folder in folders]

  def find_tokenizer(self, say=print):
    """None: labels are no texts."""

  def stream(self, *, seed: int, model: Mapping, say=print, progress=None):
    """The training data, prepared where it is missing.

    model: config.model, which must have as many classes as there are labels.
    """
    tokenizer = self.find_tokenizer(say)
    stores = [
      self._store(source, source["split"], say, progress)
      for source in self.sources
    ]
    about = self._checked(stores, model, tokenizer, say)
    kind = MixedStream if self.augmentation.mixes else Stream
    return kind(
      stores,
      [source.get("weight", 1.0) for source in self.sources],
      functools.partial(self._make_training, tokenizer),
      spec=self.spec,
      batch=self.batch,
      shuffle=self.shuffle,
      skip_steps=self.skip_steps,
      seed=seed,
      fingerprint=self._stream_fingerprint(stores, tokenizer),
      tokenizer=tokenizer,
      about=about | {
        "mean": list(self.mean), "std": list(self.std),
        "image_size": self.image_size, "channels": self.channels,
        "crop": self.crop,
      },
      **({"augment": self.augmentation} if self.augmentation.mixes else {}),
    )  # fmt: skip

  def heldout(
    self,
    *,
    split: str,
    model: Mapping,
    tokenizer=None,
    sources: Sequence[Mapping] | None = None,
    say=print,
  ) -> EvalSet:
    """A split of the sources, or of others; what is missing is prepared."""
    tokenizer = tokenizer or self.find_tokenizer(say)
    given = wholes(self.sources if sources is None else sources, self.kinds)
    stores = [self._store(source, split, say, None) for source in given]
    self._checked(stores, model, tokenizer)
    return self._eval_of(stores, tokenizer)

  def known(
    self,
    *,
    split: str,
    batches: int | None,
    model: Mapping,
    tokenizer=None,
    fingerprints: Sequence[str],
    sources: Sequence[Mapping] | None = None,
  ) -> EvalSet | None:
    """The set that `heldout` gave a run, or None where it is gone.

    Only stores below `root` are read: no source is, and nothing is written.
    """
    stores = kept.of_split(self._prepared(), split)
    count = len(self.sources if sources is None else sources)
    found = kept.known_set(
      kept.choices([stores] * count), fingerprints, batches,
      lambda choice: self._eval_fingerprint(choice, tokenizer),
      lambda choice: self._eval_of(choice, tokenizer),
    )  # fmt: skip
    if found is None:
      return None
    choice, whole = found
    self._checked(choice, model, tokenizer)
    return whole

  def seen(self, fingerprint: str, tokenizer=None) -> EvalSet | None:
    """The training images of a run, each once and as held-out ones are made.

    fingerprint: of its stream. None where they are gone; as with `known` only
    stores below `root` are read.
    """
    known = self._prepared()
    each = (kept.of_split(known, source["split"]) for source in self.sources)
    for choice in kept.choices(each):
      if self._stream_fingerprint(choice, tokenizer) == fingerprint:
        kept.check(choice)
        return self._eval_of(choice, tokenizer)
    return None

  def _prepared(self) -> list[Columns]:
    """The stores that lie below `root`."""
    check_local(self.root, "data.root")
    folder = files.expanded(self.root) / self.place
    return kept.stores_in(folder, self._opened)

  def _stream_fingerprint(self, stores: Sequence[Columns], tokenizer) -> str:
    return digest(
      f"{self.place} 1", [store.fingerprint for store in stores],
      [source.get("weight", 1.0) for source in self.sources],
      *self._how(tokenizer), dict(self.augment), bool(self.shuffle),
    )  # fmt: skip

  def _eval_of(self, stores: Sequence[Columns], tokenizer) -> EvalSet:
    return EvalSet(
      stores,
      functools.partial(self._make_heldout, tokenizer),
      spec=self._spec(mixes=False),
      batch=self.batch,
      fingerprint=self._eval_fingerprint(stores, tokenizer),
      targets=sum(map(len, stores)),
      counts={"examples": sum(map(len, stores))},
      recount=_recount,
      tokenizer=tokenizer,
    )

  def _eval_fingerprint(self, stores: Sequence[Columns], tokenizer) -> str:
    prints = [store.fingerprint for store in stores]
    return digest(f"{self.place} evalset 1", prints, *self._how(tokenizer))

  def _how(self, tokenizer) -> tuple:
    """What decides what is made of a file, besides augmentation."""
    return (
      self.batch, self.image_size, self.channels, self.crop,
      list(self.mean), list(self.std), *(["draw"] if self.draw else []),
    )  # fmt: skip

  def _open(self, source: Mapping):
    return sources.open_source(
      source, self.validation, self.most_damaged, self.kinds
    )

  def _folder(self, spec: Mapping, split: str, source) -> Path:
    check_local(self.root, "data.root")
    key = digest(
      "image store 1", source.fingerprint, source.division, split,
      self.most_damaged,
    )[:16]  # fmt: skip
    name = f"{sources.safe(source.name)}-{sources.safe(split)}-{key}"
    return files.expanded(self.root) / self.place / name

  def _store(self, spec: Mapping, split: str, say, progress) -> Columns:
    source = self._open(spec)
    folder = self._folder(spec, split, source)
    if folder.is_dir():
      store = self._opened(folder)
    else:
      say(f"preparing the images of {source.name!r} ({split})")
      store = write(folder, source, split, say=say, progress=progress)
      m = store.manifest
      if m["left_out"]:
        say(f"{source.name!r} ({split}): {told(m['left_out'])}")
      say(
        f"{source.name!r} ({split}): {counted(m['records'], 'image')} "
        f"{self._kinds_of(m['about'])}: {folder}"
      )
    store.check(say, progress)
    return store

  def _opened(self, folder: Path) -> Columns:
    """A store of such images. Raises BadData."""
    return Columns(folder, sources.COLUMNS, {"labels": [str]})

  def _kinds_of(self, about: Mapping) -> str:
    """What images of a store are of, in words."""
    return f"of {counted(len(about['labels']), 'label')}"

  def _checked(
    self, stores: Sequence[Columns], model: Mapping, tokenizer, say=None
  ) -> dict:
    """{"labels": their names}; BadConfig unless they are those of all.

    On the device a label out of range is no error: it silently reads another.
    """
    labels = [store.about["labels"] for store in stores]
    for store, other in zip(stores, labels, strict=True):
      if other != labels[0]:
        raise BadConfig(
          f"{store.name!r} has other labels ({len(other)}: {other[:3]}...) "
          f"than {stores[0].name!r} ({len(labels[0])}: {labels[0][:3]}...)"
        )
    for store in stores:
      some = store.column("label")
      if len(some) and not 0 <= some.min() <= some.max() < len(labels[0]):
        raise store.contradiction(f"labels from {some.min()} to {some.max()}")
    classes = model.get("classes") or len(labels[0])
    if classes < len(labels[0]):
      raise BadConfig(
        f"model.classes={classes}, but the data has "
        f"{counted(len(labels[0]), 'label')}: "
        f"{flags_of(model, 'classes', len(labels[0]))}"
      )
    if classes > len(labels[0]) and say:
      say(
        f"note: model.classes={classes}, and the data has "
        f"{counted(len(labels[0]), 'label')}: those beyond are never trained "
        f"({flags_of(model, 'classes', len(labels[0]))} has none)"
      )
    return {"labels": labels[0]}

  def _make_training(self, tokenizer, records: Mapping, draw: Draw) -> dict:
    names = self.augmentation.names()
    drawn = {name: draw.uniform(name, n) for name, n in names.items()}

    def one(i: int, data: bytes) -> np.ndarray:
      own = {name: values[i] for name, values in drawn.items()}
      image = decoded(data, self.channels)
      return pixels(
        self.augmentation.apply(image, self.image_size, self.crop, own)
      )

    return self._made(records, draw, one) | self._beside(
      tokenizer, records, draw
    )

  def _make_heldout(self, tokenizer, records: Mapping, draw: Draw) -> dict:
    def one(i: int, data: bytes) -> np.ndarray:
      image = decoded(data, self.channels)
      return pixels(augmenting.fitted(image, self.image_size, self.crop))

    return self._made(records, draw, one) | self._beside(
      tokenizer, records, None
    )

  def _beside(self, tokenizer, records: Mapping, draw: Draw | None) -> dict:
    """What a batch has beside images; draw: of training alone."""
    return {"labels": records["label"].astype(np.int32)}

  def _made(self, records: Mapping, draw: Draw, one) -> dict:
    """The batch; a record without bytes is padding."""
    data, S = records["image"], self.image_size
    pixels_BYXC = np.zeros((len(data), S, S, self.channels), np.float32)

    def fill(i: int) -> None:
      if data[i]:
        try:
          pixels_BYXC[i] = one(i, data[i])
        except Unusable as e:  # it was looked at when the store was made
          raise BadData(
            f"an image of a store cannot be decoded ({e}): another version of "
            "Pillow? Delete the store and prepare it again"
          ) from e

    if sum(map(len, data)) > THREADED * len(data):
      list(_pool().map(fill, range(len(data))))
    else:
      for i in range(len(data)):
        fill(i)
    mean, std = (np.float32(v) for v in (self.mean, self.std))
    pixels_BYXC = (pixels_BYXC / np.float32(255) - mean) / std
    real_B = np.array([bool(d) for d in data])
    pixels_BYXC[~real_B] = 0.0
    found = {
      "images": pixels_BYXC,
      "weights": real_B.astype(np.float32),
    }
    return found | ({"draw": draw.keys("draw")} if self.draw else {})


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  """Pillow decodes without the interpreter's lock."""
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)


def _recount(part: EvalSet) -> tuple[int, dict[str, int]]:
  """(targets, counts) of a set with fewer batches, none of them the last."""
  count = part.batches * part.batch
  return count, {"examples": count}


class MixedStream(Stream):
  """A Stream whose rows 2k and 2k + 1 are mixed with each other.

  Those of an odd batch's last row stay as they are. Whoever asks for a row gets
  the same one: its neighbour is made with it.
  """

  def __init__(self, *args, augment: Augment, **keys):
    super().__init__(*args, **keys)
    self._augment = augment

  def rows(self, step: int, rows) -> dict:
    wanted = np.arange(self.batch)[rows]
    other = wanted ^ 1
    other = np.where(other < self.batch, other, wanted)
    both = np.union1d(wanted, other)
    made = super().rows(step, both)
    first, second = (
      {key: x[np.searchsorted(both, at)] for key, x in made.items()}
      for at in (wanted, other)
    )
    places = wanted + self.position(step)
    draw = Draw(self._seed, places, places)
    return augmenting.mixed(
      first, second, {"mix": draw.uniform("mix", 4)}, self._augment
    )
