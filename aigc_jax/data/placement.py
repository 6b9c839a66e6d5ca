"""Batches on the devices, made ahead of the step that takes them.

`Placement` builds only the rows of this host's devices, `batches` works ahead
of the consumer.
"""

import collections
import functools
import queue
import threading
from collections.abc import Iterator

import jax
import numpy as np

from aigc_jax.sharding import shardings


class Placement:
  """Puts batches of a stream on a mesh; what lies where is found once.

  A host builds only the rows of its devices. per_call > 1: that many batches
  at once, with one more leading axis, which every device holds whole.
  """

  def __init__(self, stream, mesh, per_call: int = 1):
    self._stream, self._per_call = stream, per_call
    many = per_call > 1
    lead, letter = ((per_call,), ".") if many else ((), "")
    spec = {key: lead + s.shape for key, s in stream.spec.items()}
    self._laid = {
      key: shardings(letter + stream.spec[key].letters, shape, mesh)
      for key, shape in spec.items()
    }
    where = {
      key: laid.addressable_devices_indices_map(spec[key])
      for key, laid in self._laid.items()
    }
    row = len(lead)  # the axis of rows
    rows = np.arange(next(iter(stream.spec.values())).shape[0])
    mine = np.zeros(len(rows), bool)
    for indices in where.values():
      for index in indices.values():
        mine[index[row]] = True
    self._rows = rows[mine]
    local = np.cumsum(mine) - 1  # global row -> row of those built here

    def inner(index):
      picked = local[rows[index[row]]]  # one slice of global rows is one here
      some = slice(picked[0], picked[-1] + 1)
      return (*index[:row], some, *index[row + 1 :])

    self._parts = [
      (key, device, inner(index))
      for key, indices in where.items()
      for device, index in indices.items()
    ]
    self._shapes = spec
    self._whole = _placing(*self._laid.items()) if mesh.size == 1 else None

  def __call__(self, step: int) -> dict[str, jax.Array]:
    """Batch `step`, or as many as a call has from it on."""
    found = [
      self._stream.rows(step + i, self._rows) for i in range(self._per_call)
    ]
    if self._per_call > 1:
      built = {key: np.stack([f[key] for f in found]) for key in self._laid}
    else:
      (built,) = found
    if self._whole:
      return self._whole(built)
    arrays = jax.device_put(
      [built[key][index] for key, _, index in self._parts],
      [device for _, device, _ in self._parts],
    )
    placed: dict[str, list] = {key: [] for key in self._laid}
    for (key, _, _), array in zip(self._parts, arrays, strict=True):
      placed[key].append(array)
    return {
      key: jax.make_array_from_single_device_arrays(
        self._shapes[key], self._laid[key], parts
      )
      for key, parts in placed.items()
    }


@functools.lru_cache(maxsize=64)
def _placing(*laid):
  """A program that does nothing: it places whole arrays on one device.

  What its arguments take is a sixth of what device_put does in Python.
  """
  return jax.jit(lambda batch: batch, out_shardings=dict(laid))


def place(stream, step: int, mesh, per_call: int = 1) -> dict[str, jax.Array]:
  """One batch on the mesh; for many, see `Placement`."""
  return Placement(stream, mesh, per_call)(step)


class batches(Iterator):
  """(step, placed batch) for start <= step < stop; stop None never ends.

  With per_call > 1 every `per_call`-th step, with as many batches at once.
  A thread makes `ahead` batches in one go while as many others are consumed:
  where the step is a CPU's own work, each time it wakes up takes from that
  step. An error in it is raised here, in its place in the order. `close` (or
  leaving a `with`) ends the thread.
  """

  def __init__(
    self,
    stream,
    mesh,
    start: int,
    stop: int | None,
    ahead: int = 4,
    per_call: int = 1,
  ):
    self._ahead = max(1, ahead)
    self._made: queue.Queue = queue.Queue(maxsize=1)
    self._ready: collections.deque = collections.deque()
    self._closed = threading.Event()
    self._ended = False
    self._thread = threading.Thread(
      target=self._work,
      args=(stream, mesh, start, stop, per_call),
      name="batches",
      daemon=True,
    )
    self._thread.start()

  def _work(self, stream, mesh, start, stop, per_call) -> None:
    step, made, end = start, [], None
    try:
      placed = Placement(stream, mesh, per_call)
      while stop is None or step < stop:
        made.append((step, placed(step), None))
        step += per_call
        if len(made) == self._ahead:
          if not self._put(made):
            return
          made = []
      end = StopIteration()
    except BaseException as e:  # raised again where it is waited for
      end = e
    self._put([*made, (None, None, end)])

  def _put(self, made: list) -> bool:
    while not self._closed.is_set():
      try:
        self._made.put(made, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def __next__(self) -> tuple[int, dict[str, jax.Array]]:
    if self._ended or self._closed.is_set():
      raise StopIteration
    if not self._ready:
      self._ready.extend(self._made.get())
    step, batch, error = self._ready.popleft()
    if error is not None:
      self._ended = True
      self.close()
      raise error
    return step, batch

  def close(self) -> None:
    """Ends the thread; may be called more than once."""
    self._closed.set()
    if self._thread is not threading.current_thread():
      self._thread.join()

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.close()
