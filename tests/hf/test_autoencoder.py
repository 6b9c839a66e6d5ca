"""Folders of diffusers' AutoencoderKL and VQModel: read, written, refused."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import export, hf, run
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf import folder as folders
from aigc_jax.hf import kinds, safetensors
from aigc_jax.models import MODELS as KINDS
from aigc_jax.models.vae import vae
from aigc_jax.models.vq import Codes, vq
from aigc_jax.run import alike, origin
from aigc_jax.trainer.state import Fixed
from tests import commands
from tests.hf.make_autoencoder_golden import FOLDER, MODELS, images, weight
from tests.sweep import slow, sweep

NAME = "diffusion_pytorch_model.safetensors"
BEFORE = {
  "to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn",
}  # fmt: skip


@functools.cache
def golden(name="autoencoder"):
  return json.loads((FOLDER / f"{name}.json").read_text())


def written(folder, rename=lambda name: name, of="autoencoder", **changes):
  """A folder as diffusers writes it, its weights by their names."""
  folder.mkdir()
  config = golden(of)["config"] | changes
  (folder / "config.json").write_text(json.dumps(config))
  arrays = {rename(n): weight(n, s) for n, s in golden(of)["shapes"].items()}
  safetensors.write(
    folder / NAME,
    {name: (x.shape, x.dtype) for name, x in arrays.items()},
    [(name, lambda x=x: x) for name, x in arrays.items()],
  )
  return folder


def read(folder):
  """(model, its variables, joined) of a folder."""
  found = hf.load(folder)
  model = KINDS[found.family.kind](**found.kwargs)
  example = jax.eval_shape(model.init, jax.random.key(0), model.example())
  whole = kinds.joined(nn.unbox(dict(example)))
  return model, hf.read_params(found, whole)


def of_before(name: str) -> str:
  for new, old in BEFORE.items():
    name = name.replace(f".{new}.", f".{old}.")
  return name


@pytest.mark.parametrize("rename", sweep([str, of_before], str))
@pytest.mark.parametrize("name", sweep(MODELS, "vq_model"))
def test_codes_and_images_are_those_of_diffusers(tmp_path, name, rename):
  """With the same weights, by their names of today and of before."""
  model, params = read(written(tmp_path / "theirs", rename, name))
  own = coded if isinstance(model, Codes) else told
  run = jax.jit(
    functools.partial(model.apply, kinds.parted(params), method=own)
  )
  for key, x in run(images()).items():
    exact = golden(name)[key]
    if key == "codes":
      np.testing.assert_array_equal(x, exact)
    else:
      np.testing.assert_allclose(x, exact, atol=1e-5, err_msg=key)


def told(model, images_BYXC):
  mean, deviation = model.moments(images_BYXC)
  return dict(mean=mean, deviation=deviation, pixels=model.decode(mean))


def coded(model, images_BYXC):
  codes_BT = model.encode(images_BYXC)
  return dict(codes=codes_BT, pixels=model.decode(codes_BT))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_what_was_read(tmp_path, name):
  folder = written(tmp_path / "theirs", of=name)
  found, (_, params) = hf.load(folder), read(folder)
  said = {k: v for k, v in found.kwargs.items() if k != "dtype"}
  out = tmp_path / "ours"
  export.export(params, said, None, out, kind=found.family.kind, length=0)
  config = json.loads((out / "config.json").read_text())
  assert config.items() <= golden(name)["config"].items()
  theirs, ours = (folders.weights(path) for path in (folder, out))
  assert set(theirs) == set(ours)
  for tensor in theirs:
    np.testing.assert_array_equal(theirs[tensor].view(), ours[tensor].view())
  card = (out / "README.md").read_text()
  assert "library_name: diffusers" in card
  assert f"from diffusers import {MODELS[name][0]}" in card


@pytest.mark.slow
def test_how_codes_are_scaled_is_written_as_it_was_read(tmp_path):
  """Else diffusers scales those of any folder as Stable Diffusion's are."""
  folder = written(tmp_path / "theirs", of="autoencoder_plain")
  said = json.loads((folder / "config.json").read_text())
  assert said["scaling_factor"] == 1.5305 and said["shift_factor"] == 0.0609
  export.export_run(
    f"hf:{folder}", str(tmp_path / "ours"), step=None, dtype="float32",
    shard_bytes=10**9,
  )  # fmt: skip
  again = json.loads((tmp_path / "ours" / "config.json").read_text())
  assert {k: again[k] for k in export.SCALING} == {
    k: said[k] for k in export.SCALING
  }


@pytest.mark.parametrize("scale", [1.3, None])
def test_codes_of_a_latent_are_scaled_by_what_it_was_told_or_measured(scale):
  stats = {"scale": np.full(1, 0.7, np.float32)}
  model = dict(kind="latent", scale=scale, shift=0.2)
  whole = run.Loaded(
    None, {}, None, {"model": model}, None, 3, "somewhere", Fixed(None, stats)
  )
  found = export.scaling_of(whole)
  assert found["scaling_factor"] == pytest.approx(scale or 0.7)
  assert found["shift_factor"] == 0.2


@pytest.mark.slow
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
  ("own", "flags"),
  [
    (dict(scale=1.5305, shift=0.0609), []),
    (dict(scale=None, shift=0.0609), ["scale=1.5305"]),
    (dict(scale=1.5305, shift=0.0), ["shift=0.0609"]),
    (dict(scale=0.5, shift=0.0), ["scale=1.5305", "shift=0.0609"]),
  ],
)
def test_codes_that_are_scaled_as_their_folder_does_not_say_are_noted(
  tmp_path, caplog, own, flags
):
  folder = written(tmp_path / "theirs", of="autoencoder_plain")
  frozen = dict(vae=f"hf:{folder}")
  origin.note_scaled(dict(model=dict(kind="latent", **own), frozen=frozen))
  assert all(f"--config.model.{flag}" in caplog.text for flag in flags)
  assert caplog.text.count("--config") == len(flags)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(act_fn="gelu"), "act_fn"),
    (dict(use_quant_conv=False), "use_post_quant_conv='?True.*expected false"),
    slow(
      (
        dict(use_quant_conv=False, use_post_quant_conv=False),
        "unexpected: .*quant_conv",
      )
    ),
    (dict(block_out_channels=[4, 5]), "norm_num_groups=2"),
    (dict(block_out_channels=4), "block_out_channels"),
    (dict(up_block_types=["UpDecoderBlock2D"] * 2), "backwards"),
    (dict(down_block_types=["DownBlock2D"] * 2), "DownEncoderBlock2D"),
    (dict(out_channels=3), "out_channels"),
    (dict(sample_size=9), "a multiple of 2"),
    slow((dict(layers_per_block=2), "missing")),
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
    slow((dict(scales=True), "model.scales=True")),
    (dict(blocks=0, attention=()), "model.blocks=0"),
    slow((dict(places=False), "model.places=False")),
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


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(norm_type="spatial"), "norm_type='spatial'"),
    (dict(vq_embed_dim=4), "vq_embed_dim='4', expected 3"),
    (dict(num_vq_embeddings=13), "quantize.embedding.weight"),
    (dict(mid_block_add_attention=False), "mid_block_add_attention"),
    (dict(act_fn="gelu"), "act_fn"),
  ],
)
def test_a_vq_model_of_what_is_not_computed_here_is_refused(
  tmp_path, change, word
):
  with pytest.raises(BadData, match=word):
    hf.load(written(tmp_path / "theirs", of="vq_model", **change))


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(quantizer="ema"), "model.quantizer='ema'$"),
    slow(
      (
        dict(quantizer="fsq", levels=(3, 3, 3), codes=None, dim=None),
        "model.quantizer='fsq', model.levels",
      )
    ),
    slow((dict(cosine=True), "model.cosine=True$")),
    slow((dict(blocks=0, attention=()), "model.blocks=0")),
  ],
)
def test_a_vq_that_diffusers_has_no_words_for_is_not_exported(
  tmp_path, change, word
):
  kwargs = hf.load(written(tmp_path / "theirs", of="vq_model")).kwargs | change
  assert vq(**kwargs)
  with pytest.raises(BadConfig, match=word):
    hf.choose_family(kwargs, kind="vq")


@pytest.mark.slow
def test_how_often_codes_came_is_in_no_folder_and_begins_anew(tmp_path):
  """A count for the record alone; whoever wants no stats is given none."""
  folder = written(tmp_path / "theirs", of="vq_model")
  model, params = read(folder)
  assert not np.any(params["stats"]["book"]["counts"])
  alone = hf.read_params(
    folder, jax.eval_shape(lambda: kinds.parted(params)["params"])
  )
  assert "stats" not in alone and "book" in alone


VQGAN = """
from configs import dalle, vq

def get_config(preset):
  preset, folder, place = preset.split(",")
  made = vq if preset == "vq" else dalle
  preset_of = {"vq": "tiny_gan,digits", "dalle": "tiny,digits"}
  config = made.get_config(preset_of[preset])
  nets = dict(
    widths=(8, 16), blocks=1, groups=4, quantizer="gradient", codes=12, dim=3,
  )
  if preset == "vq":
    config.model.update(nets, judge_widths=(4,))
  else:
    config.model.parts.vq.update(nets)
    config.model.parts.prior.update(vocab=12 + 10 + 1, layers=1, dim=16)
    config.frozen.vq = f"hf:{folder}/{place}"
  config.steps = 2
  config.data.update(batch=16, root=f"{folder}/data")
  config.evaluate.heldout.update(batches=1, every_steps=None)
  return config
"""


@pytest.mark.slow
def test_the_first_player_of_a_vqgan_is_written_and_read_beside_a_prior(
  tmp_path,
):
  (tmp_path / "own.py").write_text(VQGAN)
  config = f"--config={tmp_path}/own.py"
  workdir, out = f"--workdir={tmp_path}/vq", f"--out={tmp_path}/hf"

  def done(module, *argv):
    found = commands.run(f"aigc_jax.{module}", *argv)
    assert found.returncode == 0, found.stderr
    return found.stdout

  done("train", f"{config}:vq,{tmp_path},hf", workdir)
  whole = commands.run("aigc_jax.export", workdir, out)
  assert whole.returncode == 78 and "--part=generator" in whole.stderr
  said = done("export", workdir, out, "--part=generator")
  assert "VQModel" in said
  done("train", f"{config}:dalle,{tmp_path},hf", f"--workdir={tmp_path}/prior")
  again = f"--workdir=hf:{tmp_path}/hf", f"--out={tmp_path}/again"
  done("export", *again)
  one, two = (folders.weights(tmp_path / name) for name in ("hf", "again"))
  assert {n: t.shape for n, t in one.items()} == {
    n: t.shape for n, t in two.items()
  }
