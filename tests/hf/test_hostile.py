"""Folders made to harm: a clear refusal, in bounded time and memory."""

import json
import os
import pathlib
import resource
import shlex
import shutil
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as library

from aigc_jax import files, hf
from aigc_jax.errors import BadData, StorageFailure
from aigc_jax.hf import folder as folders
from aigc_jax.hf import safetensors

GOLDEN = pathlib.Path(__file__).parent / "golden"


def entry(shape, begin, end, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def framed(header, body=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  claimed = len(text) if length is None else length
  return struct.pack("<Q", claimed) + text + body


GOOD = {"a": entry([2, 3], 0, 24), "b": entry([1], 24, 28)}
TWICE = (
  b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
  b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)
BODY = bytes(28)
DEEP = b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}"
MANY = b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"
# name: (bytes of the file, what the message says)
FILES = {
  "empty": (b"", "truncated"),
  "seven bytes": (b"\x01" * 7, "truncated"),
  "a length of 2**63": (framed(GOOD, BODY, 2**63), "truncated"),
  "a length beyond the file": (framed(GOOD, BODY, 10_000), "truncated"),
  "a header cut short": (framed(GOOD, BODY, 20), "not JSON"),
  "a header too long": (
    framed(b"{" + b" " * (17 << 20) + b"}"), "at most"
  ),
  "no object": (framed(b"[]"), "does not start"),
  "white space first": (framed(b"  {}"), "does not start"),
  "not UTF-8": (framed(b'{"\xff": 1}'), "not JSON"),
  "deep": (framed(DEEP), "too deep"),
  "many lists": (framed(MANY), "lists and objects"),
  "a duplicate key": (framed(TWICE, bytes(4)), "twice"),
  "NaN": (framed(b'{"a": NaN}'), "NaN is not JSON"),
  "a NaN shape": (
    framed(
      b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)
    ),
    "NaN is not JSON",
  ),
  "an infinite shape": (
    framed(
      b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4)
    ),
    "1e999 is not JSON",
  ),
  "a million digits": (
    framed(
      b'{"a":{"dtype":"F32","shape":[1'
      + b"0" * 1_000_000
      + b'],"data_offsets":[0,4]}}',
      bytes(4),
    ),
    "not JSON",
  ),
  "a negative shape": (framed({"a": entry([-1], 0, 4)}, bytes(4)), "whole"),
  "a boolean shape": (framed({"a": entry([True], 0, 4)}, bytes(4)), "whole"),
  "a fraction": (framed({"a": entry([1.0], 0, 4)}, bytes(4)), "whole"),
  "an overflowing shape": (
    framed({"a": entry([2**62, 2**62, 4], 0, 0)}), "needs"
  ),
  "a hundred axes": (framed({"a": entry([1] * 100, 0, 4)}, bytes(4)), "whole"),
  "negative offsets": (
    framed({"a": entry([1], -4, 0)}, bytes(4)), "not \\[begin, end\\]"
  ),
  "backward offsets": (
    framed({"a": entry([1], 4, 0)}, bytes(4)), "not \\[begin, end\\]"
  ),
  "offsets beyond the file": (framed({"a": entry([9], 0, 36)}), "end at byte"),
  "a span unlike the shape": (
    framed({"a": entry([2], 0, 4)}, bytes(4)), "needs 8 bytes"
  ),
  "overlapping": (
    framed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "overlaps",
  ),
  "the same span twice": (
    framed({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)),
    "overlaps",
  ),
  "a hole": (
    framed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "gap"
  ),
  "bytes before the first": (
    framed({"a": entry([1], 4, 8)}, bytes(8)), "gap"
  ),
  "bytes after the last": (
    framed({"a": entry([1], 0, 4)}, bytes(8)), "end at byte"
  ),
  "an unknown dtype": (
    framed({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)), "F8_E4M3"
  ),
  "a dtype that is a list": (
    framed({"a": entry([1], 0, 4, ["F32"])}, bytes(4)), "dtype"
  ),
  "an entry that is a number": (framed({"a": 3}), "expected dtype"),
  "an entry with more": (
    framed({"a": entry([1], 0, 4) | {"code": "x"}}, bytes(4)), "expected dtype"
  ),
  "metadata that is no text": (
    framed({"__metadata__": {"a": [1]}}), "__metadata__"
  ),
  "a pickle": (b"\x80\x02}q\x00." + bytes(20), "pickle"),
  "a torch archive": (b"PK\x03\x04" + bytes(60), "pickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_soon_and_by_name(name, tmp_path):
  data, words = FILES[name]
  path = tmp_path / "model.safetensors"
  path.write_bytes(data)
  start = time.monotonic()
  with pytest.raises(BadData, match=words) as fault:
    safetensors.read(path)
  assert time.monotonic() - start < 5
  assert str(path) in str(fault.value) and len(str(fault.value)) < 1000


def test_all_of_them_fit_a_small_memory(tmp_path):
  """In a process of 1 GiB, started without JAX's own reservations."""
  for i, (data, _) in enumerate(FILES.values()):
    (tmp_path / f"{i}.safetensors").write_bytes(data)
  code = (
    "import sys, types, resource, pathlib\n"
    # Packages without what their __init__ imports: JAX alone maps more.
    f"root = pathlib.Path({str(pathlib.Path(hf.__file__).parents[1])!r})\n"
    "for part in ('hf', 'data'):\n"
    "  package = types.ModuleType(f'aigc_jax.{part}')\n"
    "  package.__path__ = [str(root / part)]\n"
    "  sys.modules[f'aigc_jax.{part}'] = package\n"
    "from aigc_jax.errors import BadData\n"
    "from aigc_jax.hf import safetensors\n"
    "assert 'jax' not in sys.modules\n"
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
    "n = 0\n"
    "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
    "  try: safetensors.read(path)\n"
    "  except BadData: n += 1\n"
    "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    capture_output=True, text=True, timeout=600, env=os.environ | {
      "OPENBLAS_NUM_THREADS": "1",
    },
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert int(done.stdout.split()[0]) == len(FILES)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
  path = tmp_path / "x.safetensors"
  text = json.dumps(GOOD).encode().ljust(0x280)
  path.write_bytes(framed(text, BODY))
  assert path.read_bytes().startswith(b"\x80\x02")
  assert set(safetensors.read(path)) == {"a", "b"}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_as_before_or_refused(data):
  good = (GOLDEN / "llama" / "model.safetensors").read_bytes()
  head = 8 + int.from_bytes(good[:8], "little")
  broken = bytearray(good)
  for _ in range(data.draw(st.integers(1, 4))):
    broken[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
  cut = data.draw(st.one_of(st.none(), st.integers(0, len(good))))
  path = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz{os.getpid()}"
  path.write_bytes(bytes(broken[:cut]))
  try:
    found = safetensors.read(path)
  except BadData:
    return
  finally:
    path.unlink()
  assert all(t.start + t.size * t.dtype.itemsize <= len(good)
             for t in found.values())  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
  st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda s: s != "__metadata__"),
    st.tuples(
      st.lists(st.integers(0, 4), max_size=4),
      st.sampled_from(sorted(safetensors.DTYPES)),
    ),
    max_size=6,
  )
)
def test_what_is_written_is_read_back_to_the_bit(tensors):
  path = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"good{os.getpid()}"
  draw = np.random.default_rng(0)
  arrays = {
    name: draw.integers(0, 2, shape).astype(safetensors.DTYPES[kind])
    for name, (shape, kind) in tensors.items()
  }
  shapes = {name: (a.shape, a.dtype) for name, a in arrays.items()}
  makers = [(name, lambda a=a: a) for name, a in arrays.items()]
  try:
    safetensors.write(path, shapes, makers)
    found = {n: np.array(t.view()) for n, t in safetensors.read(path).items()}
  finally:
    path.unlink(missing_ok=True)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path):
  arrays = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.ones((3,), np.float16),
    "none": np.zeros((0, 4), np.int64),
  }
  ours, theirs = tmp_path / "ours", tmp_path / "theirs"
  safetensors.write(
    ours,
    {n: (a.shape, a.dtype) for n, a in arrays.items()},
    [(n, lambda a=a: a) for n, a in arrays.items()],
  )
  library.save_file(arrays, theirs)
  read = {n: t.view() for n, t in safetensors.read(theirs).items()}
  for found in (library.load_file(ours), read):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
      assert found[name].dtype == array.dtype
      np.testing.assert_array_equal(found[name], array)


# Folders.


@pytest.fixture
def copy(tmp_path):
  shutil.copytree(GOLDEN / "llama", tmp_path / "model")
  return tmp_path / "model"


def indexed(copy, table):
  """The folder with its weights behind an index."""
  single = copy / "model.safetensors"
  if single.exists():
    single.rename(copy / "part.safetensors")
  text = table if isinstance(table, str) else json.dumps({"weight_map": table})
  (copy / "model.safetensors.index.json").write_text(text)
  return copy


def names():
  return list(safetensors.read(GOLDEN / "llama" / "model.safetensors"))


def test_an_index_of_one_file_is_that_file(copy):
  found = hf.load(indexed(copy, dict.fromkeys(names(), "part.safetensors")))
  assert found.kwargs == hf.load(GOLDEN / "llama").kwargs


@pytest.mark.parametrize(
  "file",
  [
    "../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors",
    "..", "", "part.safetensors\u0000", "part.safetensors\n", "part.bin",
    "~/x.safetensors", "C:\\x.safetensors", 7, None, ["part.safetensors"],
    "p\u0430rt.safetensors", "..safetensors/../part.safetensors",
  ],
)  # fmt: skip
def test_an_index_cannot_reach_outside_its_folder(copy, file):
  (copy.parent / "secret.safetensors").write_bytes(framed(GOOD, BODY))
  table = dict.fromkeys(names(), "part.safetensors") | {names()[0]: file}
  with pytest.raises(BadData, match="same folder"):
    hf.load(indexed(copy, table))


@pytest.mark.parametrize("listed", [False, True])
def test_weights_that_the_config_names_are_read_in_place_of_all_others(
  copy, listed
):
  """As in transformers, whose key this is."""
  single, config = copy / "model.safetensors", copy / "config.json"
  whole = safetensors.read(single)
  other = {n: t.view().copy() for n, t in whole.items()}
  key = "model.norm.weight"
  other[key][0] = 7.0
  name = "other.safetensors"
  safetensors.write(
    copy / name,
    {n: (x.shape, x.dtype) for n, x in other.items()},
    [(n, lambda x=x: x) for n, x in other.items()],
  )
  if listed:
    table = dict.fromkeys(other, name)
    name += ".index.json"
    (copy / name).write_text(json.dumps({"weight_map": table}))
  said = json.loads(config.read_text())
  config.write_text(json.dumps(said | {"transformers_weights": name}))
  assert hf.load(copy).tensors[key].view()[0] == 7.0
  config.write_text(json.dumps(said | {"transformers_weights": None}))
  assert hf.load(copy).tensors[key].view()[0] == whole[key].view()[0]


@pytest.mark.parametrize("name", ["../x.safetensors", "x.bin", 3, "", ["x"]])
def test_a_config_names_no_weights_but_of_its_own_folder(copy, name):
  config = copy / "config.json"
  said = json.loads(config.read_text()) | {"transformers_weights": name}
  config.write_text(json.dumps(said))
  with pytest.raises(BadData, match="transformers_weights"):
    hf.load(copy)


@pytest.mark.parametrize(
  "table",
  ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{", "",
   '{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}'],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(copy, table):
  with pytest.raises(BadData, match="index.json"):
    hf.load(indexed(copy, table))


def test_an_index_and_its_files_must_agree(copy):
  table = dict.fromkeys(names(), "part.safetensors")
  with pytest.raises(BadData, match="'ghost' is not in part"):
    hf.load(indexed(copy, table | {"ghost": "part.safetensors"}))
  del table["lm_head.weight"]
  with pytest.raises(BadData, match="does not list .* 'lm_head.weight'"):
    hf.load(indexed(copy, table))
  with pytest.raises(BadData, match="cannot be read"):
    hf.load(indexed(copy, table | {"lm_head.weight": "no.safetensors"}))


def test_links_out_of_the_folder_are_refused(copy):
  outside = copy.parent / "outside.safetensors"
  (copy / "model.safetensors").rename(outside)
  (copy / "model.safetensors").symlink_to(outside)
  with pytest.raises(BadData, match="cp -rL"):
    hf.load(copy)
  (copy / "model.safetensors").unlink()
  (copy / "model.safetensors").symlink_to("/dev/zero")
  with pytest.raises(BadData, match="link to /dev/zero"):
    hf.load(copy)


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
  model = tmp_path / "models--x"
  (model / "blobs").mkdir(parents=True)
  (model / "snapshots" / "1").mkdir(parents=True)
  for name in ("model.safetensors", "config.json"):
    shutil.copy(GOLDEN / "llama" / name, model / "blobs" / f"b-{name}")
    link = model / "snapshots" / "1" / name
    link.symlink_to(f"../../blobs/b-{name}")
  assert hf.load(model / "snapshots" / "1").kwargs["layers"] == 2


def test_what_is_no_regular_file_is_refused(copy):
  (copy / "model.safetensors").unlink()
  os.mkfifo(copy / "model.safetensors")
  with pytest.raises(BadData, match="not a regular file"):
    hf.load(copy)


class Canary:
  """What a pickle would do to whoever opens it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_what_converts_them(copy, name):
  import pickle

  canary = copy / "canary"
  (copy / "model.safetensors").unlink()
  (copy / name).write_bytes(pickle.dumps(Canary(canary)))
  with pytest.raises(BadData, match="weights_only=True") as fault:
    hf.load(copy)
  assert str(copy / name) in str(fault.value)
  (copy / name).rename(copy / "model.safetensors")
  with pytest.raises(BadData, match="pickle"):
    hf.load(copy)
  assert not canary.exists()


def test_a_name_in_a_folder_is_no_command_in_what_is_to_be_pasted(copy):
  (copy / "model.safetensors").unlink()
  names = (
    "a;touch canary;.bin",
    "$(touch canary).pt",
    "x y'`touch canary`.bin",
  )
  for name in names:
    (copy / name).touch()
  with pytest.raises(BadData, match="weights_only=True") as fault:
    hf.load(copy)
  *_, line = str(fault.value).split("sys.argv[1], ")
  words = shlex.split(line.partition('" ')[2])
  wanted = [copy / "model.safetensors", *(copy / n for n in sorted(names))]
  assert words == [str(path) for path in wanted]


@pytest.mark.parametrize(
  "text",
  ['{"model_type": NaN}', '{"model_type": 1, "model_type": 2}', "[1]", "",
   '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"a": ' + "9" * 10**6 + "}",
   '{"model_type": "llama", "a": Infinity}', '"llama"', '{"a": "\\ud800']
)  # fmt: skip
def test_a_config_that_is_no_json_object_is_refused(copy, text):
  (copy / "config.json").write_text(text)
  with pytest.raises(BadData, match="config.json"):
    hf.load(copy)


def test_huge_json_is_refused_unread(copy):
  with open(copy / "config.json", "wb") as file:
    file.truncate(200 << 20)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(BadData, match="at most"):
    hf.load(copy)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 50_000


@pytest.mark.parametrize(
  "change",
  [
    dict(num_hidden_layers=10**9), dict(hidden_size=10**12),
    dict(vocab_size=10**9), dict(intermediate_size=2**31 - 1),
    dict(num_attention_heads=0), dict(num_attention_heads=10**8),
    dict(num_key_value_heads=5), dict(head_dim=10**7), dict(head_dim=3),
    dict(num_hidden_layers=-1), dict(num_hidden_layers=2.5),
    dict(num_hidden_layers=True), dict(hidden_size="12"),
    dict(hidden_size=[12]), dict(rms_norm_eps="x"), dict(rms_norm_eps=-1.0),
    dict(tie_word_embeddings="yes"), dict(hidden_act="swigelu"),
    dict(rope_parameters=[1]), dict(rope_parameters={"rope_type": "yarn"}),
    dict(rope_parameters={"rope_type": "linear"}),
    dict(rope_parameters={"rope_type": "linear", "factor": 0}),
    dict(rope_parameters={"partial_rotary_factor": 0.5}),
    dict(model_type="mamba"), dict(model_type=None), dict(model_type=[]),
    dict(quantization_config={"bits": 4}), dict(max_position_embeddings=0),
  ],
  ids=str,
)  # fmt: skip
def test_an_absurd_config_is_refused_before_anything_is_made(copy, change):
  path = copy / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  start = time.monotonic()
  with pytest.raises((BadData, hf.families.BadConfig)):
    hf.load(copy)
  assert time.monotonic() - start < 5


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
  with pytest.raises(BadData, match="no such folder"):
    hf.load(tmp_path / "nowhere")
  with pytest.raises(BadData, match=folders.SINGLE):
    hf.load(tmp_path)
  assert files.LIMIT == 16 << 20


SHORTER = """
import os, sys
from pathlib import Path
from aigc_jax.hf import safetensors
path = Path(sys.argv[1])
x = safetensors.read(path)["w"].view()
os.truncate(path, 4096)
print(x[-1])
"""


def test_a_file_that_becomes_shorter_while_it_is_read_is_named(tmp_path):
  path = tmp_path / "model.safetensors"
  x = np.arange(50_000, dtype=np.float32)
  safetensors.write(path, {"w": (x.shape, x.dtype)}, [("w", lambda: x)])
  line = [sys.executable, "-c", SHORTER, str(path)]
  run = subprocess.run(line, capture_output=True, text=True, timeout=600)
  assert run.returncode == StorageFailure.code, run.stderr
  assert f"{path} became shorter while it was read" in run.stderr
