"""TensorBoard's files, written beside metrics.jsonl."""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from aigc_jax import files
from aigc_jax.errors import StorageFailure


@contextlib.contextmanager
def without(name: str):
  """A package that has not been imported counts as not installed meanwhile."""
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None
  try:
    yield
  finally:
    del sys.modules[name]


# tensorboardX imports PyTorch wherever it is installed: seconds of every start,
# and nothing of it is used here.
with without("torch"):
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2
  from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
  from tensorboardX.proto.tensor_pb2 import TensorProto

# Columns of a row that say where it stands, and no curve.
NO_TAGS = ("step", "examples", "tokens", "flops", "seconds", "data/batch_hash")


class Board:
  """Scalars for TensorBoard, below one folder; a failure is told once.

  Written in place: a writer with a queue would wait for ever for a thread
  that a full disk has ended.
  """

  def __init__(self, folder: Path, after: int):
    self._writer: EventsWriter | None = None
    try:
      files.own_folder(folder)
      suffix = f".{os.getpid()}.{secrets.token_hex(2)}"
      self._writer = EventsWriter(str(folder / "events"), suffix)
      # TensorBoard forgets what an earlier process said about these steps.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._event(step=after + 1, session_log=start)
    except (OSError, StorageFailure) as error:
      self._fail(error)

  def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
      if isinstance(value, int | float) and name not in NO_TAGS
    ]
    try:
      self._event(step=step, summary=Summary(value=values))
    except OSError as error:
      self._fail(error)

  def text(self, step: int, name: str, text: str) -> None:
    """A text under its own tag, which TensorBoard shows as Markdown."""
    content = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    content.tensor_shape.dim.add(size=1)
    about = SummaryMetadata()
    about.plugin_data.plugin_name = "text"
    value = Summary.Value(tag=name, metadata=about, tensor=content)
    try:
      self._event(step=step, summary=Summary(value=[value]))
    except OSError as error:
      self._fail(error)

  def pictures(self, step: int, pictures: Mapping) -> None:
    """Pictures (`journal.Picture`) under their tags."""
    values = [
      Summary.Value(
        tag=name,
        image=Summary.Image(
          height=x.height, width=x.width, colorspace=x.channels,
          encoded_image_string=x.png,
        ),
      )
      for name, x in pictures.items()
    ]  # fmt: skip
    try:
      self._event(step=step, summary=Summary(value=values))
    except OSError as error:
      self._fail(error)

  def flush(self) -> None:
    try:
      if self._writer:
        self._writer.flush()
    except OSError as error:
      self._fail(error)

  def _event(self, **fields) -> None:
    if self._writer:
      self._writer.write_event(event_pb2.Event(wall_time=time.time(), **fields))

  def _fail(self, error: OSError) -> None:
    logging.error("TensorBoard files cannot be written: %s", error)
    self._writer = None
