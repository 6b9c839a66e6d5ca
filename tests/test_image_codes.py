"""From a VQ to images of a prior over its codes, by the commands."""

import json

import jax
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.trainer import faults
from tests import commands

VQ = (
  "--config=configs/vq.py:tiny,digits", "--config.model.widths=(6,)",
  "--config.model.codes=9", "--config.model.dim=4",
)  # fmt: skip
PRIOR = (
  "--config=configs/dalle.py:tiny,digits",
  "--config.model.parts.vq.widths=(6,)", "--config.model.parts.vq.codes=9",
  "--config.model.parts.vq.dim=4", "--config.model.parts.prior.vocab=20",
  "--config.model.parts.prior.layers=1", "--config.model.parts.prior.dim=16",
)  # fmt: skip


def train(folder, workdir: str, *line: str, plan: dict | None = None):
  if plan:
    (folder / workdir).mkdir()
    (folder / workdir / faults.MARK).touch()
  return commands.run(
    "aigc_jax.train", f"--workdir={folder / workdir}",
    f"--config.data.root={folder / 'data'}", "--config.data.batch=16",
    "--config.steps=6", "--config.checkpoint.every_steps=3",
    "--config.evaluate.heldout.every_steps=None", *line,
    environ={"AIGC_JAX_FAULTS": json.dumps(plan)} if plan else {},
  )  # fmt: skip


def digest(workdir) -> list[int]:
  return json.loads((workdir / "result.json").read_text())["digest"]


@pytest.mark.slow
def test_a_vq_is_trained_and_resumed_and_a_prior_tells_its_codes(tmp_path):
  pytest.importorskip("sklearn")
  done = train(tmp_path, "vq", *VQ)
  assert done.returncode == 0, done.stderr
  # Killed in its fifth step: the codebook and its counts come back too.
  plan = {"die_at": [{"site": "step", "step": 5}]}
  assert train(tmp_path, "parted", *VQ, plan=plan).returncode != 0
  done = train(tmp_path, "parted", *VQ)
  assert done.returncode == 0, done.stderr
  assert digest(tmp_path / "vq") == digest(tmp_path / "parted")

  own = f"--config.frozen.vq={tmp_path / 'vq'}"
  done = train(tmp_path, "wrong", *PRIOR, own, "--config.model.classes=12")
  assert done.returncode == BadConfig.code
  assert "--config.model.parts.prior.vocab=22" in done.stderr
  other = "--config.model.parts.vq.codes=12"
  fits = "--config.model.parts.prior.vocab=23"
  done = train(tmp_path, "wrong", *PRIOR, own, other, fits)
  assert done.returncode == BadConfig.code
  assert "--config.model.parts.vq.codes=9" in done.stderr

  done = train(tmp_path, "prior", *PRIOR, own)
  assert done.returncode == 0, done.stderr
  vq, prior = (run.load(str(tmp_path / name)) for name in ("vq", "prior"))
  for ours, theirs in (
    (prior.params["vq"], vq.params), (prior.fixed.stats["vq"], vq.fixed.stats),
  ):  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

  def generate(name: str, out: str, *flags: str):
    done = commands.run(
      "aigc_jax.generate", f"--workdir={tmp_path / name}", "--grid=2x3",
      f"--out={tmp_path / out}", *flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (tmp_path / out).read_bytes()

  drawn = generate("prior", "a.png", "--guidance=2", "--labels=3,none")
  assert drawn == generate(
    "prior", "b.png", "--guidance=2", "--labels=3,none", "--batch=2"
  )
  assert drawn != generate("prior", "c.png", "--guidance=2", "--seed=1")
  # The VQ goes on: its prior keeps to the codes that it was trained on.
  done = train(tmp_path, "vq", *VQ, "--allow_change=steps", "--config.steps=9")
  assert done.returncode == 0, done.stderr
  again = ("--guidance=2", "--labels=3,none")
  assert drawn == generate("prior", "g.png", *again)
  kept = generate("vq", "d.png", "--reconstruct", "--step=6")
  assert kept == generate("prior", "e.png", "--reconstruct", "--part=vq")
  done = commands.run(
    "aigc_jax.generate", f"--workdir={tmp_path / 'vq'}", "--grid=2x3",
    f"--out={tmp_path / 'f.png'}",
  )  # fmt: skip
  assert done.returncode == BadConfig.code
  assert "add --reconstruct, or train an image_tokens" in done.stderr
