"""Folder: the weights of a Hugging Face folder, by name, and nothing else.

Nothing in it is executed, and no name in it leads out of it.
"""

import re
import shlex
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadData
from aigc_jax.hf import safetensors

# What the weights are called, by the library whose folder it is.
STEMS = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LISTS = ".index.json"  # the end of its name
PLAIN = re.compile(r"[A-Za-z0-9._-]+")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# weights_only=True makes torch refuse everything in a pickle but tensors.
CONVERT = (
  'python -c "import sys, torch, safetensors.torch as s; s.save_file({k: '
  "v.clone().contiguous() for f in sys.argv[2:] for k, v in torch.load(f, "
  "map_location='cpu', weights_only=True).items()}, sys.argv[1], "
  "{'format': 'pt'})\" "
)


def check_there(folder: Path) -> None:
  """Raises BadData where there is no such folder, or no config.json in it."""
  lacking = "" if (folder / "config.json").exists() else "no config.json in it"
  if lacking or not folder.is_dir():
    why = lacking if folder.is_dir() else "no such folder"
    raise BadData(f"hf:{folder}: {why} (expected config.json and {SINGLE})")


def weights(
  folder: Path, named: object = None
) -> dict[str, safetensors.Tensor]:
  """{name: Tensor} of a folder's safetensors, one file or several.

  named: what its config.json calls them (`transformers_weights`, which
  transformers then reads in place of all others), None where it does not.
  Raises BadData for pickled weights (with the line that converts them), for
  names that lead outside and for an index that disagrees with its files.
  """
  if named is not None:
    where = folder / "config.json: transformers_weights"
    if isinstance(named, str) and named.endswith(LISTS):
      return _indexed(folder / (_inside(where, named[: -len(LISTS)]) + LISTS))
    return safetensors.read(folder / _inside(where, named))
  present = {entry.name for entry in folder.iterdir()}
  for stem in STEMS.values():
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if single in present:
      return safetensors.read(folder / single)
    if index in present:
      return _indexed(folder / index)
  pickled = sorted(
    n for n in present if n.endswith(PICKLED) and n != "training_args.bin"
  )
  if pickled:
    # Their names are a stranger's, and a line that is pasted is run.
    made, *paths = (str(folder / name) for name in (SINGLE, *pickled))
    raise BadData(
      f"{folder} holds pickled weights ({pickled[0]!r}), and opening a pickle "
      f"can run any code. Convert them safely:\n{CONVERT}"
      f"{shlex.join([made, *paths])}"
    )
  raise BadData(f"{folder} holds neither {SINGLE} nor {INDEX}")


def _indexed(where: Path) -> dict[str, safetensors.Tensor]:
  """The tensors that an index lists, of the files beside it."""
  folder = where.parent
  table = files.read_json(where).get("weight_map")
  if not isinstance(table, dict) or not table:
    raise BadData(f"{where}: weight_map is not an object of names")
  opened: dict[str, dict] = {}
  found = {}
  for name, file in table.items():
    file = _inside(where, file)
    if file not in opened:
      opened[file] = safetensors.read(folder / file)
    if name not in opened[file]:
      raise BadData(f"{where}: tensor {name[:80]!r} is not in {file}")
    found[name] = opened[file][name]
  beyond = [n for tensors in opened.values() for n in tensors if n not in table]
  if beyond:
    raise BadData(f"{where} does not list the tensor {beyond[0][:80]!r}")
  return found


def _inside(where: Path, file) -> str:
  """A file name that can only mean a file of the same folder."""
  plain = isinstance(file, str) and PLAIN.fullmatch(file)
  if not plain or not file.endswith(".safetensors"):
    raise BadData(
      f"{where}: {str(file)[:120]!r} is not the name of a .safetensors file in "
      "the same folder"
    )
  return file
