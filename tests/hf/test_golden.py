"""Folders that transformers wrote, read and written again without torch."""

import inspect
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import hf, sharding, tree
from aigc_jax.errors import BadData
from aigc_jax.hf import safetensors
from aigc_jax.models import decoder
from tests.sweep import sweep

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
TOKENS = (np.arange(11)[None] * 5 % 17).astype(np.int32)


def abstract(kwargs, tokens=TOKENS, mesh=None):
  """(shapes, shardings) of the parameters of a decoder."""
  model = decoder(**kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), {"tokens": tokens})
  laid = sharding.of_tree(boxed["params"], mesh) if mesh else None
  return nn.unbox(boxed["params"]), laid


def logits(kwargs, params, tokens=TOKENS):
  """float32 logits of a decoder."""
  model = decoder(**kwargs)
  run = jax.jit(lambda p: model.apply({"params": p}, {"tokens": tokens}))
  with jax.default_matmul_precision("highest"):
    return np.asarray(run(params).logits())


def read(folder):
  """{name: array} of a folder's only safetensors file."""
  found = safetensors.read(folder / "model.safetensors")
  return {name: np.array(t.view()) for name, t in found.items()}


def written(folder, imported, params, **more):
  folder.mkdir()
  hf.write(
    folder, params, imported.kwargs, **dict(
      family=imported.family, dtype="float32", shard_bytes=10**9, special={},
    ) | more,
  )  # fmt: skip
  return folder


@pytest.mark.parametrize("name", sweep(NAMES, *NAMES[::4]))
def test_a_published_folder_gives_the_logits_of_transformers(name):
  found = hf.load(GOLDEN / name)
  params = hf.read_params(found, abstract(found.kwargs)[0])
  expected = np.load(GOLDEN / name / "logits.npy")
  np.testing.assert_allclose(
    logits(found.kwargs, params), expected, atol=1e-4, rtol=0
  )


@pytest.mark.parametrize("name", sweep(NAMES, *NAMES[1::4]))
def test_import_then_export_gives_the_identical_tensors(name, tmp_path):
  found = hf.load(GOLDEN / name)
  params = hf.read_params(found, abstract(found.kwargs)[0])
  before, after = (
    read(f) for f in (GOLDEN / name, written(tmp_path / "a", found, params))
  )
  assert before.keys() == after.keys()
  for key in before:
    assert before[key].dtype == after[key].dtype
    np.testing.assert_array_equal(before[key], after[key])
  assert hf.load(tmp_path / "a").kwargs == found.kwargs


def test_shards_of_a_few_bytes_hold_the_same(tmp_path):
  found = hf.load(GOLDEN / "qwen3")
  params = hf.read_params(found, abstract(found.kwargs)[0])
  folder = written(tmp_path / "a", found, params, shard_bytes=3000)
  files = sorted(folder.glob("*.safetensors"))
  assert len(files) > 2
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == {f.name for f in files}
  again = hf.read_params(folder, abstract(found.kwargs)[0])
  jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_every_mesh_reads_the_same_parameters(name):
  found = hf.load(GOLDEN / name)
  whole = hf.read_params(found, abstract(found.kwargs)[0])
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=1, sequence=1, pipeline=2
  )
  shapes, laid = abstract(found.kwargs, mesh=mesh)
  parts = hf.read_params(found, shapes, laid)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  assert jax.tree.map(lambda x: x.sharding, parts) == laid
  assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(parts))


def test_every_keyword_of_the_decoder_comes_from_the_folder():
  for name in NAMES:
    wanted = inspect.signature(decoder).parameters
    assert set(hf.load(GOLDEN / name).kwargs) == set(wanted)


def changed(tmp_path, name, change, config=None):
  """A copy of a golden folder whose tensors `change` has gone over."""
  folder = tmp_path / "copy"
  shutil.copytree(GOLDEN / name, folder)
  arrays = read(folder)
  change(arrays)
  safetensors.write(
    folder / "model.safetensors",
    {n: (a.shape, a.dtype) for n, a in arrays.items()},
    [(n, lambda a=a: a) for n, a in arrays.items()],
  )
  settings = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(settings | (config or {})))
  return folder


def test_every_tensor_is_used_once_or_named(tmp_path):
  def change(arrays):
    arrays["model.layers.1.mlp.up_proj.wait"] = arrays.pop(
      "model.layers.1.mlp.up_proj.weight"
    )
    arrays["model.norm.weight"] = np.ones(5, np.float32)

  with pytest.raises(BadData) as fault:
    hf.load(changed(tmp_path, "llama", change))
  text = str(fault.value)
  assert "missing: model.layers.1.mlp.up_proj.weight" in text
  assert "unexpected: model.layers.1.mlp.up_proj.wait" in text
  assert "model.norm.weight has shape (5,), expected (12,)" in text


def test_harmless_buffers_and_a_missing_prefix_are_no_fault(tmp_path):
  def change(arrays):
    for name in list(arrays):
      arrays[name.removeprefix("transformer.")] = arrays.pop(name)
    arrays["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)

  folder = changed(tmp_path, "gpt2", change)
  kwargs = hf.load(folder).kwargs
  a, b = (
    hf.read_params(f, abstract(kwargs)[0]) for f in (folder, GOLDEN / "gpt2")
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_tied_head_may_be_stored_again_but_not_differ(tmp_path):
  def again(arrays):
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()

  def other(arrays):
    again(arrays)
    arrays["lm_head.weight"][3, 1] += 1

  hf.load(changed(tmp_path / "a", "qwen2", again))
  with pytest.raises(BadData, match="lm_head.weight differs"):
    hf.load(changed(tmp_path / "b", "qwen2", other))
  untied = dict(tie_word_embeddings=False)
  hf.load(changed(tmp_path / "c", "qwen2", other, untied))


def test_another_model_than_the_folders_is_refused():
  kwargs = hf.load(GOLDEN / "llama").kwargs
  shapes, _ = abstract(kwargs | dict(mlp_dim=14, tied=True))
  with pytest.raises(BadData) as fault:
    hf.read_params(GOLDEN / "llama", shapes)
  assert "stack/mlp/up/w: the folder has (2, 12, 10)" in str(fault.value)
  assert "head/table" in str(fault.value)


def test_bfloat16_weights_are_read_as_they_are(tmp_path):
  found = hf.load(GOLDEN / "llama")
  params = hf.read_params(found, abstract(found.kwargs)[0])
  folder = written(tmp_path / "a", found, params, dtype="bfloat16")
  again = hf.load(folder)
  assert again.kwargs["dtype"] == "bfloat16"
  got = hf.read_params(again, abstract(found.kwargs)[0])
  expected = jax.tree.map(
    lambda x: x.astype("bfloat16").astype("float32"), params
  )
  jax.tree.map(np.testing.assert_array_equal, expected, got)
  assert tree.count(got) == tree.count(params)
