"""Folders of diffusers' AutoencoderKL: read, written, and what they say."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import export, hf
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf import folder as folders
from aigc_jax.hf import kinds, safetensors
from aigc_jax.models import MODELS
from aigc_jax.models.vae import vae
from aigc_jax.run import alike, origin
from tests.hf.make_autoencoder_golden import GOLDEN, images, weight
from tests.sweep import sweep

NAME = "diffusion_pytorch_model.safetensors"
BEFORE = {
  "to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn",
}  # fmt: skip


@functools.cache
def golden():
  return json.loads(GOLDEN.read_text())


def written(folder, rename=lambda name: name, **changes):
  """A folder as diffusers writes it, its weights by their names."""
  folder.mkdir()
  config = golden()["config"] | changes
  (folder / "config.json").write_text(json.dumps(config))
  arrays = {rename(n): weight(n, s) for n, s in golden()["shapes"].items()}
  safetensors.write(
    folder / NAME,
    {name: (x.shape, x.dtype) for name, x in arrays.items()},
    [(name, lambda x=x: x) for name, x in arrays.items()],
  )
  return folder


def read(folder):
  """(model, its parameters) of a folder."""
  found = hf.load(folder)
  model = MODELS[found.family.kind](**found.kwargs)
  example = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return model, hf.read_params(found, nn.unbox(example)["params"])


def of_before(name: str) -> str:
  for new, old in BEFORE.items():
    name = name.replace(f".{new}.", f".{old}.")
  return name


@pytest.mark.parametrize("rename", sweep([str, of_before], str))
def test_codes_and_images_are_those_of_diffusers(tmp_path, rename):
  """With the same weights, by their names of today and of before."""
  model, params = read(written(tmp_path / "theirs", rename))
  run = jax.jit(functools.partial(model.apply, {"params": params}, method=both))
  for name, x in run(images()).items():
    np.testing.assert_allclose(x, golden()[name], atol=1e-5, err_msg=name)


def both(model, images_BYXC):
  mean, deviation = model.moments(images_BYXC)
  return dict(mean=mean, deviation=deviation, pixels=model.decode(mean))


@pytest.mark.slow
def test_what_is_written_is_what_was_read(tmp_path):
  folder = written(tmp_path / "theirs")
  found, (_, params) = hf.load(folder), read(folder)
  said = {k: v for k, v in found.kwargs.items() if k != "dtype"}
  out = tmp_path / "ours"
  export.export(params, said, None, out, kind="vae", length=0)
  config = json.loads((out / "config.json").read_text())
  assert config.items() <= golden()["config"].items()
  theirs, ours = (folders.weights(path) for path in (folder, out))
  assert set(theirs) == set(ours)
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(tensor.view(), ours[name].view())
  assert "library_name: diffusers" in (out / "README.md").read_text()


def test_the_same_vae_for_larger_images_is_the_same_and_another_is_not(
  tmp_path,
):
  """So that a latent of small images reads one of large ones, and says why."""
  folder = written(tmp_path / "theirs")
  kwargs = hf.load(folder).kwargs
  own = dict(kind="vae", **kwargs) | dict(image_size=16, attention=(8,))
  assert not alike.differing(own, {"kind": "vae"} | kwargs)
  config = dict(
    model=dict(kind="latent", parts=dict(vae=own)),
    frozen=dict(vae=f"hf:{folder}"),
  )
  origin.check_frozen_origins(config)
  config["model"]["parts"]["vae"] = own | dict(attention=())
  with pytest.raises(BadConfig, match=r"parts\.vae\.attention"):
    origin.check_frozen_origins(config)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(act_fn="gelu"), "act_fn"),
    (dict(use_quant_conv=False), "use_quant_conv"),
    (dict(block_out_channels=[4, 5]), "norm_num_groups=2"),
    (dict(block_out_channels=4), "block_out_channels"),
    (dict(up_block_types=["UpDecoderBlock2D"] * 2), "backwards"),
    (dict(down_block_types=["DownBlock2D"] * 2), "DownEncoderBlock2D"),
    (dict(out_channels=3), "out_channels"),
    (dict(sample_size=9), "a multiple of 2"),
    (dict(layers_per_block=2), "missing"),
    (dict(_class_name="AutoencoderTiny"), "AutoencoderTiny"),
  ],
)
def test_folders_of_what_is_not_computed_here_are_refused(
  tmp_path, change, word
):
  with pytest.raises(BadData, match=word):
    hf.load(written(tmp_path / "theirs", **change))


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(scales=True), "model.scales=True"),
    (dict(blocks=0, attention=()), "model.blocks=0"),
    (dict(places=False), "model.places=False"),
  ],
)
def test_what_diffusers_has_no_words_for_is_not_exported(
  tmp_path, change, word
):
  kwargs = hf.load(written(tmp_path / "theirs")).kwargs | change
  assert vae(**kwargs)
  with pytest.raises(BadConfig, match=word):
    hf.choose_family(kwargs, kind="vae")


def test_what_a_probe_reads_is_the_models():
  kwargs = dict(image_size=6, channels=1, widths=(4,), latent=2)
  batch = kinds.KINDS["vae"].probe(kwargs, np.random.default_rng(0))
  assert jax.eval_shape(vae(**kwargs).init, jax.random.key(0), batch)
