"""From token stores to batches on the devices.

A Stream is endless training data, an EvalSet a held-out set read once. Both
have `spec` (global shapes) and `rows(n, rows)`, any rows of batch n on the
host, without state: batch n is a pure function of (seed, fingerprint, n), of
skip_steps and, where the batch was another before, of how far those went.
`Placement` builds only the rows of this host's devices, `batches` works ahead
of the consumer.
"""

import collections
import copy
import functools
import queue
import threading
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.data.mixture import (
  check_weights,
  example_of,
  intervals,
  order,
  pass_over,
)
from aigc_jax.data.store import Store
from aigc_jax.data.tasks import make_task
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.sharding import shardings

# The axes of every key that a batch may have.
LETTERS = {
  "tokens": "BT",
  "targets": "BT",
  "weights": "BT",
  "positions": "BT",
  "segments": "BT",
}


def _spec(function, batch: int, length: int) -> dict:
  """Global shapes and types of what a task makes."""
  made = function(np.zeros((1, length + 1), np.int32), np.array([length]))
  return {
    key: jax.ShapeDtypeStruct((batch, *value.shape[1:]), value.dtype)
    for key, value in made.items()
  }


def _digest(*content) -> str:
  return files.sha256_json(content)


def _check_sizes(batch: int, length: int) -> None:
  for name, value in (("batch", batch), ("length", length)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise BadConfig(f"data.{name}={value!r}: expected a positive integer")


class Stream:
  """Endless batches from one or several stores.

  spec: {key: ShapeDtypeStruct} of a global batch; fingerprint: sha256 of all
  that decides the batches except seed and skip_steps; tokens_per_epoch:
  targets in one pass over every store; tokenizer; stores; weights.

  Raises BadData where the stores are smaller than one batch, BadConfig for
  impossible settings.
  """

  def __init__(
    self,
    stores: Sequence[Store],
    weights: Sequence[float],
    tokenizer,
    *,
    task: dict,
    batch: int,
    length: int,
    segments: bool,
    shuffle: bool,
    skip_steps,
    seed: int,
  ):
    _check_sizes(batch, length)
    check_weights(list(weights))
    used = [k for k, weight in enumerate(weights) if weight > 0]
    self.stores = [stores[k] for k in used]
    self.weights = [float(weights[k]) for k in used]
    self.tokenizer = tokenizer
    self.batch, self.length = batch, length
    self._skip_steps = intervals(skip_steps)
    self._stand(0, 0, [(0, batch)])
    self._task = functools.partial(
      make_task(task), eot=tokenizer.eot, segments=segments
    )
    _check_tokens(self.stores, tokenizer)
    sizes = [store.windows(length) for store in self.stores]
    for store, size in zip(self.stores, sizes, strict=True):
      if not size or sum(sizes) < batch:
        _too_small(store, size, sum(sizes), batch, length)
    self._ends = np.cumsum([0] + sizes)
    self._order = order(sizes, self.weights, seed, shuffle)
    self.windows = sizes
    self.tokens_per_epoch = sum(sizes) * length
    self.spec = _spec(self._task, batch, length)
    self.fingerprint = _digest(
      "stream 1", [s.fingerprint for s in self.stores], self.weights,
      dict(task), batch, length, bool(segments), bool(shuffle),
    )  # fmt: skip

  def _stand(self, step: int, position: int, batches) -> None:
    self._origin = (step, position)
    self.batches = [tuple(pair) for pair in batches]
    self._skipped = [
      (example_of(a, self.batches), example_of(b, self.batches))
      for a, b in self._skip_steps
    ]

  def going_on(self, step: int, position: int, batches) -> "Stream":
    """The same data for a run that stands at `step`, its batch now this one's.

    position: the example in the order that comes next. batches: [(position,
    batch), ...], from which example on the run took batches of which size;
    skip_steps count those. No example comes twice within an epoch, whatever the
    batch was before.
    """
    batches = [tuple(pair) for pair in batches]
    if batches[-1][1] != self.batch:
      batches.append((position, self.batch))
    part = copy.copy(self)
    part._stand(step, position, batches)
    return part

  def position(self, step: int) -> int:
    """The first example, in the order, of batch `step`."""
    since, position = self._origin
    return pass_over(position, (int(step) - since) * self.batch, self._skipped)

  def epochs(self, examples: int) -> list[tuple[str, float]]:
    """(name, how many times it is gone through) of each source."""
    total = sum(self.weights)
    return [
      (s.manifest["name"], examples * weight / total / size)
      for s, weight, size in zip(
        self.stores, self.weights, self.windows, strict=True
      )
    ]

  def rows(self, step: int, rows) -> dict[str, np.ndarray]:
    """Rows (indices or a slice) of batch `step`."""
    rows = np.arange(self.batch)[rows]
    first = self.position(step)
    order = self._order
    numbers = np.array([order[first + row] for row in rows.tolist()], np.int64)
    window = _gather(self.stores, self._ends, numbers, self.length)
    return self._task(window, np.full(len(rows), self.length))


def _gather(stores, ends, numbers, length) -> np.ndarray:
  """Whole windows by their number in all stores: (n, length + 1) int32."""
  if len(stores) == 1:
    return stores[0].gather(numbers, length)
  which = np.searchsorted(ends, numbers, side="right") - 1
  window = np.empty((len(numbers), length + 1), np.int32)
  for k in np.unique(which):
    mine = which == k
    window[mine] = stores[k].gather(numbers[mine] - ends[k], length)
  return window


def _too_small(store, size, all_sizes, batch, length):
  name = f"{store.manifest['name']!r} ({store.manifest['split']})"
  most = (store.tokens - 1) // batch
  way_out = f"--config.data.length={most}, " if most >= 8 else ""
  what = "one window" if not size else "one batch"
  raise BadData(
    f"source {name} has {store.tokens} tokens, {size} window(s) of length "
    f"{length}, which is less than {what} (batch={batch} x length={length} = "
    f"{batch * length} tokens); use a smaller batch or length "
    f"({way_out}--config.data.batch={max(all_sizes, 1)}) or more text"
  )


def _check_tokens(stores, tokenizer) -> None:
  """Stores must have been made with this tokenizer and hold only its ids."""
  for store in stores:
    made = store.manifest["tokenizer"]["fingerprint"]
    if made != tokenizer.fingerprint:
      raise BadData(
        f"{store.folder}: made with another tokenizer "
        f"({store.manifest['tokenizer']['name']}) than {tokenizer.name}; "
        "prepare it again"
      )
    if store.max_token >= tokenizer.vocab:
      raise BadData(
        f"{store.folder}: holds token id {store.max_token}, but the tokenizer "
        f"has {tokenizer.vocab} ids; delete the folder and prepare it again"
      )


def check_vocab(stream, vocab: int) -> None:
  """Raises BadConfig where the model has fewer ids than text can need.

  On the device an id out of range is no error: it silently reads another row.
  """
  held = (store.max_token + 1 for store in stream.stores)
  needed = max(stream.tokenizer.text_vocab, *held)
  if vocab < needed:
    raise BadConfig(
      f"model.vocab={vocab}, but the tokenizer ({stream.tokenizer.name}) makes "
      f"{needed} ids: --config.model.vocab={needed} (a multiple of 128 is "
      f"faster: {-(-needed // 128) * 128})"
    )


def eval_fingerprint(
  stores: Sequence[str], task: dict, batch: int, length: int, segments: bool
) -> str:
  """That of an EvalSet of stores with these fingerprints."""
  return _digest(
    "evalset 1", list(stores), dict(task), batch, length, bool(segments)
  )


def first_fingerprint(whole: str, batches: int) -> str:
  """That of the first batches of an EvalSet with this fingerprint."""
  return _digest(whole, batches)


class EvalSet:
  """A held-out set: every target exactly once, in order, the rest padding.

  batches: how many; tokens: how many targets, ends of text included; bytes:
  UTF-8 bytes of the text that the targets spell; yardsticks: bits per byte of
  gzip and xz on the same text. `rows(index, rows)` as of a Stream; padding has
  weight 0 and the end of text as token.
  """

  def __init__(
    self,
    stores: Sequence[Store],
    tokenizer,
    *,
    task: dict,
    batch: int,
    length: int,
    segments: bool,
  ):
    _check_sizes(batch, length)
    _check_tokens(stores, tokenizer)
    self.stores, self.tokenizer = list(stores), tokenizer
    self.batch, self.length = batch, length
    self._task = functools.partial(
      make_task(task), eot=tokenizer.eot, segments=segments
    )
    sizes = [-(-(store.tokens - 1) // length) for store in self.stores]
    self._ends = np.cumsum([0] + sizes)
    self.batches = -(-sum(sizes) // batch)
    self.tokens = sum(store.tokens - 1 for store in self.stores)
    self.bytes = sum(store.bytes for store in self.stores)
    self.yardsticks = _yardsticks(self.stores)
    self.spec = _spec(self._task, batch, length)
    self.fingerprint = eval_fingerprint(
      [s.fingerprint for s in self.stores], task, batch, length, segments
    )

  def rows(self, index: int, rows) -> dict[str, np.ndarray]:
    """Rows (indices or a slice) of batch `index`."""
    rows = np.arange(self.batch)[rows]
    window = np.full((len(rows), self.length + 1), self.tokenizer.eot, np.int32)
    count = np.zeros(len(rows), np.int64)
    for i, number in enumerate((int(index) * self.batch + rows).tolist()):
      if number < self._ends[-1]:
        k = int(np.searchsorted(self._ends, number, side="right")) - 1
        found = self.stores[k].window(number - int(self._ends[k]), self.length)
        window[i, : len(found)] = found
        count[i] = len(found) - 1
    return self._task(window, count)

  def first(self, batches: int) -> "EvalSet":
    """The first batches only, with tokens and bytes counted over those.

    Negative, or more than there are: all of them.
    """
    if batches < 0 or batches >= self.batches:
      return self
    part = EvalSet.__new__(EvalSet)
    vars(part).update(vars(self))
    part.batches, part.tokens, part.bytes = batches, 0, 0
    part.yardsticks = {}  # those are of the whole text
    for index in range(batches):
      batch = self.rows(index, slice(None))
      real = batch["targets"][batch["weights"] > 0]
      part.tokens += len(real)
      part.bytes += int(self.tokenizer.byte_lengths[real].sum())
    part.fingerprint = first_fingerprint(self.fingerprint, batches)
    return part


def _yardsticks(stores) -> dict[str, float]:
  """Those of the stores together, each weighing as many bytes as it has."""
  found = [s for s in stores if s.manifest["yardsticks"]]
  total = sum(store.bytes for store in found)
  return {
    name: sum(s.manifest["yardsticks"][name] * s.bytes for s in found) / total
    for name in ("gzip", "xz")
    if total
  }


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
      key: shardings(letter + LETTERS[key], shape, mesh)
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
