"""A family as a table: one row per parameter, read in both directions.

A row says which tensor of theirs is which leaf of ours, and how the axes of
one become those of the other: "(NH)D->DNH" is a matrix whose rows are heads
times head width, transposed and split, and "1TD->TD" is one with an axis of one
before. Several leaves may share one tensor, as
parts of an axis C, or lie one after the other in it. "{layer}" in a name stands
for an index of the axis L.
"""

import dataclasses
import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf.safetensors import Tensor
from aigc_jax.hf.settings import Settings

GROUP = re.compile(r"\((\w+)\)|(\w)")
SHOWN = 12  # names in a list of what is wrong


class Row(NamedTuple):
  """One leaf: our path, their name, their axes -> our axes (without L)."""

  path: str
  name: str
  axes: str
  part: int = 0  # which of the parts of a shared tensor
  # How many there are along C, or of which axes each one is along the first.
  parts: int | tuple[str, ...] = 1
  beside: str = ""  # a leaf of ours without which another row is meant
  # Whether components along H that are turned together lie side by side there;
  # here they lie half a head apart.
  pairs: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture of transformers, or of diffusers.

  kind: of models.MODELS. settings: config.json -> keywords of that model, and
  config: back. The latter always gives a config; what it cannot say shows when
  it is read back; it may name other `architectures` than the family's own.
  limits: what transformers itself would refuse of such a config, in words.
  insist: the tokenizer class, if any, that transformers puts in the place of
  whatever is named; it changes text before it is cut.
  heads: {keyword: tensor}: parts that are there where that tensor is, whatever
  the config names. copies: {tensor: original} that a folder may hold besides,
  if they are the same. spellings: parts of names that were others once.
  implied: {tensor: its values for keywords and so many rows}: not needed, and
  where it is there it holds these. fixed: {tensor: its values for keywords of
  the model}: what is computed here and stored there, where it must be that.
  aliases: {key of config.json: the family's own that it means}.
  pipeline: what transformers calls the use of it. library: whose folders these
  are, transformers' or diffusers'.
  unsaid: paths of ours, under STATS, of what is for the record alone: a folder
  has none of it, and where one is read it begins as zeros.
  check: raises BadData where other files of a folder, whose keywords are given,
  say what is not computed here.
  """

  model_type: str
  architecture: str
  prefix: str  # of the names, left out by checkpoints without a head
  rows: tuple[Row, ...]
  settings: Callable[[Settings], dict]
  config: Callable[[Mapping], dict]
  # Buffers that carry no information: masks, frequencies of rotary planes.
  ignored: tuple[str, ...] = ()
  limits: Callable[[Mapping], list[str]] = lambda kwargs: []
  insist: str = ""
  kind: str = "decoder"
  heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
  copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
  spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  implied: Mapping[str, Callable[[Mapping, int], np.ndarray]] = (
    dataclasses.field(default_factory=dict)
  )
  fixed: Mapping[str, Callable[[Mapping], np.ndarray]] = dataclasses.field(
    default_factory=dict
  )
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pipeline: str = "text-generation"
  library: str = "transformers"
  unsaid: tuple[str, ...] = ()
  check: Callable[[Path, Mapping], None] = lambda folder, kwargs: None


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One leaf of ours with its row: shapes known on both sides."""

  row: Row
  shape: tuple[int, ...]  # with the leading L, where the name has a layer
  # Of all letters of the leaves that share a tensor with this one.
  letters: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def stacked(self) -> bool:
    return "{layer}" in self.row.name

  @property
  def names(self) -> list[str]:
    """Their name for each layer, or the one name."""
    if not self.stacked:
      return [self.row.name]
    return [self.row.name.format(layer=i) for i in range(self.shape[0])]

  @property
  def _axes(self) -> tuple[list[str], str, dict[str, int]]:
    theirs, ours = self.row.axes.split("->")
    groups = ["".join(pair) for pair in GROUP.findall(theirs)]
    return groups, ours, self.sizes | {"C": self.row.parts, "1": 1}

  @property
  def sizes(self) -> dict[str, int]:
    """{letter: size} of our axes, without L."""
    _, ours = self.row.axes.split("->")
    return dict(zip(ours, self.shape[self.stacked :], strict=True))

  @property
  def _ends(self) -> list[int]:
    """Where the parts begin and end that lie one after the other."""
    sizes = [
      math.prod(self.letters[a] for a in part) for part in self.row.parts
    ]
    return [0, *itertools.accumulate(sizes)]

  @property
  def _in_a_row(self) -> bool:
    return isinstance(self.row.parts, tuple)

  @property
  def their_shape(self) -> tuple[int, ...]:
    """The shape of one tensor of theirs."""
    shape = self._own_shape
    return (self._ends[-1], *shape[1:]) if self._in_a_row else shape

  @property
  def _own_shape(self) -> tuple[int, ...]:
    """Of this leaf alone, if others lie before and behind it."""
    groups, _, sizes = self._axes
    return tuple(math.prod(sizes[a] for a in group) for group in groups)

  @property
  def order(self) -> list[int]:
    """Our axes, those first along which parts lie together in the files."""
    groups, ours, _ = self._axes
    theirs = [ours.index(a) for a in _letters(groups).replace("C", "")]
    return [0, *(i + 1 for i in theirs)] if self.stacked else theirs

  def ours(self, theirs: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a tensor of theirs with our axes."""
    view = self._view(theirs)
    if not self.row.pairs:
      return view[index]
    at = self._turned  # of which all is there before it is put in order
    whole = view[(*index[:at], slice(None), *index[at + 1 :])]
    return _parted(whole, at)[(slice(None),) * at + (index[at],)]

  @property
  def _turned(self) -> int:
    """The place of H among our axes."""
    return self._axes[1].index("H")

  def _view(self, theirs: np.ndarray) -> np.ndarray:
    """A tensor of theirs as a view with our axes, pairs as they are."""
    groups, ours, sizes = self._axes
    letters = _letters(groups)
    if self._in_a_row:
      theirs = theirs[slice(*self._ends[self.row.part :][:2])]
    whole = theirs.reshape([sizes[a] for a in letters])
    if "C" in letters:
      before = (slice(None),) * letters.index("C")
      whole = whole[(*before, self.row.part)]
      letters = letters.replace("C", "")
    return whole.transpose([letters.index(a) for a in ours])

  def theirs(self, parts: list[np.ndarray]) -> np.ndarray:
    """One tensor of theirs from ours, or from the parts that share it.

    Parts in a row are each as `alone` makes it.
    """
    if self._in_a_row:
      return np.concatenate(parts)
    groups, ours, _ = self._axes
    letters = _letters(groups)
    if "C" in letters:
      whole = np.stack(parts, axis=-1)
      ours += "C"
    else:
      (whole,) = parts
    order = [ours.index(a) for a in letters]
    return whole.transpose(order).reshape(self._own_shape)

  def alone(self, ours: np.ndarray) -> np.ndarray:
    """What `theirs` takes of this leaf."""
    if self.row.pairs:
      ours = _paired(ours, self._turned)
    if not self._in_a_row:
      return ours
    groups, letters, _ = self._axes
    order = [letters.index(a) for a in _letters(groups)]
    return ours.transpose(order).reshape(self._own_shape)

  def read(self, tensors: Mapping[str, Tensor], index, dtype) -> np.ndarray:
    """The part `index` of the leaf; of the files only its bytes are read."""
    if not self.stacked:
      (name,) = self.names
      return np.array(self.ours(tensors[name].view(), index), dtype)
    names = self.names[index[0]]
    sizes = [
      len(range(n)[cut])
      for n, cut in zip(self.shape[1:], index[1:], strict=True)
    ]
    out = np.empty((len(names), *sizes), dtype)
    for i, name in enumerate(names):
      out[i] = self.ours(tensors[name].view(), index[1:])
    return out


def _parted(x: np.ndarray, axis: int) -> np.ndarray:
  """The first of each pair along an axis, then the second of each."""
  x = np.moveaxis(x, axis, -1)
  parted = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
  return np.moveaxis(parted, -1, axis)


def _paired(x: np.ndarray, axis: int) -> np.ndarray:
  """`_parted` backwards."""
  halves = np.split(np.moveaxis(x, axis, -1), 2, axis=-1)
  paired = np.stack(halves, axis=-1).reshape(*halves[0].shape[:-1], -1)
  return np.moveaxis(paired, -1, axis)


def _letters(groups: list[str]) -> str:
  """Their axes; one of size one is nothing but a matter of shape."""
  return "".join(groups).replace("1", "")


def leaves(family: Family, shapes: Mapping[str, tuple]) -> dict[str, Leaf]:
  """{path: Leaf} for a decoder's parameters {path: shape}.

  A row whose leaf the decoder lacks is left out, and so is what the family
  leaves unsaid. Raises BadConfig for any other leaf that no row names.
  """
  shapes = {p: shape for p, shape in shapes.items() if p not in family.unsaid}
  rows = {
    row.path: row
    for row in family.rows
    if not row.beside or row.beside in shapes
  }
  lost = [path for path in shapes if path not in rows]
  if lost:
    raise BadConfig(
      f"{family.architecture} has no place for {_some(lost)} of this model"
    )
  found = {path: Leaf(rows[path], tuple(shapes[path])) for path in shapes}
  letters: dict[str, dict[str, int]] = {}
  for leaf in found.values():
    letters.setdefault(leaf.row.name, {}).update(leaf.sizes)
  return {
    path: dataclasses.replace(leaf, letters=letters[leaf.row.name])
    for path, leaf in found.items()
  }


def renamed(family: Family, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The tensors by the names of today, and no buffers.

  With the prefix, where none of them has it. Raises BadData where two of them
  have one name of today: which of them counts, nobody said.
  """
  prefix = family.prefix
  known = {row.name.split("{layer}")[0] for row in family.rows}
  bare = not any(name.startswith(prefix) for name in names)
  out = {}
  for name, tensor in names.items():
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in family.ignored):
      continue
    for old, new in family.spellings.items():
      name = name.replace(old, new)
    full = prefix + name
    starts = any(full.startswith(k) for k in known)
    name = full if bare and starts else name
    if name in out:
      raise BadData(
        f"{tensor.file}: the tensor {name[:80]!r} is there twice, by its older "
        "name too: leave one of them out"
      )
    out[name] = tensor
  return out


def check(
  where: str, table: Mapping[str, Leaf], tensors: Mapping[str, Tensor]
) -> None:
  """BadData unless the tensors are those of the table, each of its shape."""
  expected = {}
  for leaf in table.values():
    expected |= dict.fromkeys(leaf.names, leaf.their_shape)
  missing = [n for n in expected if n not in tensors]
  beyond = [n for n in tensors if n not in expected]
  wrong = [
    f"{n} has shape {tensors[n].shape}, expected {shape}"
    for n, shape in expected.items()
    if n in tensors and tensors[n].shape != shape
  ]
  whole = [
    f"{n} holds {tensors[n].dtype}, expected floating point"
    for n in expected
    if n in tensors and tensors[n].dtype.kind in "iub"
  ]
  faults = [
    f"{title}: {_some(names)}"
    for title, names in (
      ("missing", missing),
      ("unexpected", beyond),
      ("wrong shape", wrong),
      ("wrong dtype", whole),
    )
    if names
  ]
  if faults:
    raise BadData(
      f"{where}: the weights are not those of its config.json\n  "
      + "\n  ".join(faults)
    )


def _some(names: list[str]) -> str:
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(n[:200] for n in names[:SHOWN]) + more
