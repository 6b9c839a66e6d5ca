"""Parquet files whose rows have the bytes of an image, and more."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.data import listing, tables
from aigc_jax.data.arrays import state_of
from aigc_jax.data.documents import Job, grouped, job_size, reading
from aigc_jax.data.rows import _parquet
from aigc_jax.errors import BadData


class ParquetFiles:
  """The files below a path. Raises BadData where there is none.

  columns: {key of the source that names it: its name}. The image is a column of
  bytes, or of {"bytes": ..., "path": ...} as Hugging Face's datasets write it.
  """

  def __init__(self, path: str, columns: dict[str, str]):
    listing.check_local(path, "path of a source of images")
    self.path = os.path.abspath(files.expanded(path))
    self.name, self.columns = Path(self.path).stem, columns
    found = listing.find(self.path, path, Path(os.devnull))
    self.files = [
      (name, where)
      for name, where, _ in found.files
      if name.endswith(".parquet")
    ]
    if not self.files:
      raise BadData(f"{str(path)!r}: no .parquet file there")
    self.state = self._state()

  def _state(self) -> str:
    """sha256 over what changes with a file, without reading all of it."""
    try:
      found = [state_of(os.stat(path)) for _, path in self.files]
    except OSError:
      return "gone"
    return files.sha256_json(found)

  def unchanged(self) -> bool:
    """Whether the files are those that there were at first."""
    return self._state() == self.state != "gone"

  @reading()
  def stamp(self, what: str) -> str:
    """A sha256 of the files, the columns, and what is made of them."""
    content = [(name, files.sha256_file(path)) for name, path in self.files]
    return files.sha256_json([what, *self.columns.values(), *content])

  def column(self, path: str, key: str) -> list:
    """All values of one column of a file."""
    file = self._checked(path)
    name = self.columns[key]
    return _read(path, lambda: file.read([name]).column(0).to_pylist())

  def jobs(self) -> list[Job]:
    """The groups of rows, some at a time."""
    parts = []
    for name, path in self.files:
      meta = _parquet(path).metadata
      for i in range(meta.num_row_groups):
        parts.append(((name, path, i), meta.row_group(i).total_byte_size))
    return grouped(parts, job_size(sum(size for _, size in parts)))

  def records(
    self, job: Job, keys: Sequence[str]
  ) -> Iterator[tuple[str, str, int, bytes, list]]:
    """(name of the file, its path, row, the image, the columns of `keys`).

    An image that is missing is no bytes: it counts as one that is damaged.
    """
    names = [self.columns[key] for key in ("image", *keys)]
    for name, path, group in job.parts:
      file = self._checked(path)
      at = sum(file.metadata.row_group(i).num_rows for i in range(group))
      table = _read(path, lambda f=file, g=group: f.read_row_group(g, names))
      values = [table.column(n).to_pylist() for n in names]
      for row, (image, *rest) in enumerate(zip(*values, strict=True), at):
        data = image.get("bytes") if isinstance(image, dict) else image
        yield name, path, row, data or b"", rest

  def _checked(self, path: str):
    """The file, which has all the columns."""
    file = _parquet(path)
    there = file.schema_arrow.names
    for key, name in self.columns.items():
      if name not in there:
        raise BadData(
          f"{path}: no column {name!r}{tables.others(name, there)}; "
          f"{tables.named(key)}"
        )
    return file


def _read(path: str, read):
  try:
    return read()
  except (ValueError, OSError) as e:  # pyarrow's errors are both
    raise BadData(f"{path}: damaged Parquet file: {e}") from e
