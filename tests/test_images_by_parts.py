"""Captions, latents and a VQ beside a judge: killed, resumed, drawn from."""

import jax
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from tests import commands
from tests.test_image_codes import digest, train

NARROW = ("--config.optim.average=0.5", "--config.optim.warmup_steps=0")
PROMPTED = (
  "--config=configs/prompted.py:digits", "--config.model.layers=1",
  "--config.model.dim=16", "--config.model.heads=2",
  "--config.model.text_layers=1", "--config.model.text_dim=12",
  "--config.model.text_heads=2", *NARROW,
)  # fmt: skip
VAE = (
  "--config=configs/vae.py:tiny_places,digits", "--config.model.widths=(6,)",
)  # fmt: skip
LATENT = (
  "--config=configs/latent.py:tiny,digits",
  "--config.model.parts.vae.widths=(6,)",
  "--config.model.parts.denoiser.layers=1",
  "--config.model.parts.denoiser.dim=16",
  "--config.model.parts.denoiser.heads=2", *NARROW,
)  # fmt: skip
CLIP = (
  "--config=configs/clip.py:digits", "--config.model.image_layers=1",
  "--config.model.image_dim=16", "--config.model.image_heads=2",
  "--config.model.text_layers=1", "--config.model.text_dim=12",
  "--config.model.text_heads=2", "--config.optim.warmup_steps=0",
)  # fmt: skip
TOWER = (
  "--config=configs/prompted.py:digits_clip",
  *(flag.replace("model.", "model.parts.text.") for flag in CLIP[1:-1]),
  "--config.model.parts.denoiser.layers=1",
  "--config.model.parts.denoiser.dim=16",
  "--config.model.parts.denoiser.heads=2",
  "--config.model.parts.denoiser.text_dim=12", *NARROW,
)  # fmt: skip
VQGAN = (
  "--config=configs/vq.py:tiny_gan,digits", "--config.model.widths=(6,)",
  "--config.model.codes=9", "--config.model.dim=4",
  "--config.model.judge_widths=(5,)", "--config.objective.start_step=4",
)  # fmt: skip


def twins(folder, *line: str) -> None:
  """One run, and one that is killed in its fifth step and goes on."""
  done = train(folder, "whole", *line)
  assert done.returncode == 0, done.stderr
  plan = {"die_at": [{"site": "step", "step": 5}]}
  assert train(folder, "parted", *line, plan=plan).returncode != 0
  done = train(folder, "parted", *line)
  assert done.returncode == 0, done.stderr
  assert digest(folder / "whole") == digest(folder / "parted")


def drawn(folder, out: str, *flags: str) -> bytes:
  done = commands.run(
    "aigc_jax.generate", f"--workdir={folder / 'whole'}", "--grid=2x2",
    f"--out={folder / out}", *flags,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return (folder / out).read_bytes()


@pytest.mark.slow
def test_a_model_of_captions_draws_what_a_prompt_says(tmp_path):
  pytest.importorskip("sklearn")
  twins(tmp_path, *PROMPTED)
  how = ("--steps=2", "--guidance=2", "--weights=average")
  said = ("--prompt=a two", "--prompt=the digit six")
  first = drawn(tmp_path, "a.png", *how, *said)
  assert first == drawn(tmp_path, "b.png", *how, *said, "--batch=3")
  assert first != drawn(tmp_path, "c.png", *how, *said[:1])
  assert first != drawn(tmp_path, "d.png", *how)
  done = commands.run(
    "aigc_jax.generate", f"--workdir={tmp_path / 'whole'}", "--grid=2x2",
    f"--out={tmp_path / 'e.png'}", f"--prompt={'a' * 30}",
  )  # fmt: skip
  assert done.returncode == BadConfig.code
  assert "has 30 tokens" in done.stderr and "data.length=24" in done.stderr


@pytest.mark.slow
def test_captions_are_read_by_the_frozen_tower_of_another_run(tmp_path):
  pytest.importorskip("sklearn")
  done = train(tmp_path, "clip", *CLIP)
  assert done.returncode == 0, done.stderr
  own = f"--config.frozen.text={tmp_path / 'clip'}"
  twins(tmp_path, *TOWER, own)
  clip, whole = (run.load(str(tmp_path / name)) for name in ("clip", "whole"))
  jax.tree.map(np.testing.assert_array_equal, whole.params["text"], clip.params)
  how = ("--steps=2", "--guidance=2", "--weights=average")
  first = drawn(tmp_path, "a.png", *how, "--prompt=a two")
  assert first == drawn(tmp_path, "b.png", *how, "--prompt=a two", "--batch=3")
  assert first != drawn(tmp_path, "c.png", *how, "--prompt=a six")


@pytest.mark.slow
def test_latents_are_of_a_frozen_vae_by_the_scale_that_was_measured(tmp_path):
  pytest.importorskip("sklearn")
  done = train(tmp_path, "vae", *VAE)
  assert done.returncode == 0, done.stderr
  own = f"--config.frozen.vae={tmp_path / 'vae'}"
  twins(tmp_path, *LATENT, own)
  vae, whole = (run.load(str(tmp_path / name)) for name in ("vae", "whole"))
  jax.tree.map(np.testing.assert_array_equal, whole.params["vae"], vae.params)
  stats = whole.fixed.stats
  assert stats["measured"] == 1 and stats["scale"] != 1
  images = drawn(tmp_path, "a.png", "--steps=2", "--guidance=2")
  assert images == drawn(
    tmp_path, "b.png", "--steps=2", "--guidance=2", "--batch=3"
  )


@pytest.mark.slow
def test_a_vq_beside_a_judge_counts_its_updates_and_reconstructs(tmp_path):
  pytest.importorskip("sklearn")
  twins(tmp_path, *VQGAN)
  whole = run.load(str(tmp_path / "whole"))
  assert whole.fixed.stats["steps"] == 6
  assert drawn(tmp_path, "a.png", "--reconstruct")
