"""Arrays of a state to files and back, through Orbax; no policy, no names.

A state is stored flat, one array for each leaf, under the leaf's path with
dots for slashes. Leaves without elements are not stored.
"""

import functools
import glob
import math
import os
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from aigc_jax import tree
from aigc_jax.errors import BadConfig
from aigc_jax.trainer import manifest

NAME = "arrays"  # the folder of them in a checkpoint
INDEX = "manifest.ocdbt"  # in it, of what all processes wrote
# What Orbax and the file system raise when a save or a read goes wrong.
ERRORS = (OSError, ValueError, TimeoutError, KeyError, TypeError)
# What Orbax stumbles over in descriptions that parse but make no sense.
STRANGE = (*ERRORS, AttributeError, IndexError, RecursionError)


class _Folder(type(epath.Path("/"))):
  """A folder for Orbax, whose own name is no pattern.

  Orbax asks its paths what is in them, and those take "[" or "*" in the name of
  a folder for signs of a pattern: in such a one it would find no array to put
  into its index, and say nothing.
  """

  def glob(self, pattern: str):
    whole = os.path.join(glob.escape(os.fspath(self)), pattern)
    return (self._new(path) for path in glob.glob(whole))


def check_place(folder: Path) -> None:
  """Raises BadConfig for a folder that the library would look for elsewhere."""
  if "\\" in str(folder):
    raise BadConfig(
      f"{folder}: checkpoints cannot have a backslash in their path, which the "
      "library that writes them takes for a slash: choose another name"
    )


def check_indexed(folder: Path) -> None:
  """Raises OSError where arrays were written that nobody would find again."""
  if not (folder / INDEX).is_file():
    raise OSError(f"{folder}: its arrays were written without an index")


def write(folder: Path, state, name: str) -> ocp.AsyncCheckpointer:
  """Begins to write; returns when `state` has been copied to the host.

  The writer's `wait_until_finished` raises what went wrong since. `name` must
  be new in the life of the process: barriers of several processes carry it.
  """
  _hush()
  writer = ocp.AsyncCheckpointer(
    _handler(),
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=0, barrier_sync_key_prefix=name
    ),
  )
  full = {leaf: x for leaf, x in tree.flat(state).items() if x.size}
  writer.save(_Folder(folder), args=ocp.args.PyTreeSave(_keyed(full)))
  return writer


@functools.cache
def _hush() -> None:
  """Lets none but `wait_until_finished` tell of a write that failed.

  Orbax logs its error with the stack of every thread that it passes, and of
  each array whose write fails or ends after that, asyncio and TensorStore say
  that nobody waits for it: a thousand lines of a disk that is full.
  """
  logging.get_absl_logger().addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
  )
  logging.logging.getLogger("asyncio").addFilter(
    lambda record: "async_serialize" not in record.getMessage()
  )
  shown = sys.unraisablehook

  def hook(args) -> None:
    if str(args.exc_value) != "Event loop is closed":
      shown(args)

  sys.unraisablehook = hook


def read(folder: Path, abstract):
  """The leaves of `abstract` (ShapeDtypeStruct with shardings) from files.

  The files may hold more, and may have been written on other devices. Raises
  Invalid where they describe other arrays, before reading any.
  """
  flat = {name: _placed(x) for name, x in tree.flat(abstract).items()}
  full = {name: x for name, x in flat.items() if math.prod(x.shape)}
  wanted = _keyed(full)
  handler, path = _handler(), _Folder(folder)
  _check_storage(handler.metadata(path), wanted)
  arrays = handler.restore(
    path,
    args=ocp.args.PyTreeRestore(
      item=wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    ),
  )
  leaves = [
    arrays[_key(name)]
    if name in full
    else jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
    for name, x in flat.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _handler() -> ocp.PyTreeCheckpointHandler:
  return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)


def _key(name: str) -> str:
  """A leaf's name in Orbax, where a slash would look like a folder."""
  return name.replace("/", ".")


def _keyed(flat: dict) -> dict:
  keyed = {_key(name): x for name, x in flat.items()}
  if len(keyed) != len(flat):
    raise BadConfig("two leaves have names that differ in '/' and '.' only")
  return keyed


def _placed(x) -> jax.ShapeDtypeStruct:
  """`x` with a sharding; whole on the first device where it has none."""
  where = getattr(x, "sharding", None)
  where = where or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _check_storage(stored, wanted: dict) -> None:
  """The arrays as their files describe them are those that were asked for.

  A file that claims a huge chunk would otherwise take its memory.
  """
  stored = getattr(stored, "tree", stored)
  for name, x in wanted.items():
    if name not in stored:
      raise manifest.Invalid(f"its arrays have no {name}")
    there = stored[name]
    chunk = there.storage.chunk_shape if there.storage else ()
    same = tuple(there.shape) == x.shape and there.dtype == x.dtype
    if not same or math.prod(chunk or ()) > math.prod(x.shape):
      raise manifest.Invalid(
        f"its array {name} is {there.dtype}{list(there.shape)} in chunks of "
        f"{chunk}, not {x.dtype}{list(x.shape)}"
      )
