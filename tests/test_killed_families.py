"""Families as whole runs by the commands: killed and resumed, and then used."""

import json

import numpy as np
import pytest

from aigc_jax.data.sound.decoding import decoded, wav
from aigc_jax.errors import BadConfig
from aigc_jax.trainer import faults
from tests import commands

STEPS = 6
SMALL = dict(dim=16, heads=2)
OF_SOUND = dict(seconds=0.2, target_length=6, validation=0.4, split_by="text")
# Preset -> its keys, by section, where they are not the preset's own.
FAMILIES = {
  "clip.py:digits": dict(
    model=dict(
      image_layers=1, image_dim=16, image_heads=2, text_layers=1, text_dim=16,
      text_heads=2, embed_dim=8,
    ),
    evaluate=dict(recall__every_steps=3, zero_shot__every_steps=None),
  ),
  "spoken_digits.py:ctc": dict(
    data=OF_SOUND
    | dict(augment__speed=10, augment__times=1, augment__time_width=3),
    model=SMALL | dict(layers=1, bins=8, stride=1)
  ),
  "spoken_digits.py:whisper": dict(
    data=OF_SOUND,
    model=SMALL | dict(encoder_layers=1, decoder_layers=1, bins=8, seconds=0.2),
  ),
  "tts.py:digits": dict(
    data=OF_SOUND,
    model=SMALL | dict(layers=1, bins=8, speakers=2),
    objective=dict(bins=8),
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two speakers who say letters, in noises."""
  top = tmp_path_factory.mktemp("families")
  draw = np.random.default_rng(0)
  for speaker in ("ann", "bob"):
    (top / "speech" / speaker).mkdir(parents=True)
    for i in range(12):
      clip = draw.integers(-9000, 9000, draw.integers(1600, 3200))
      path = top / "speech" / speaker / f"{i}.wav"
      path.write_bytes(wav(clip.astype("i2")))
      path.with_suffix(".txt").write_text("abcdefghijkl"[i])
  return top


def train(folder, preset: str, workdir: str, plan: dict | None = None):
  """The training command, in FOLDER/WORKDIR."""
  keys = {
    f"{section}.{key.replace('__', '.')}": value
    for section, own in FAMILIES[preset].items()
    for key, value in own.items()
  }
  keys |= {
    "steps": STEPS, "data.batch": 8, "data.root": str(folder / "data"),
    "checkpoint.every_steps": 3, "log.every_steps": 1,
    "evaluate.heldout.every_steps": None, "optim.warmup_steps": 0,
  }  # fmt: skip
  if "clip" not in preset:
    keys["data.sources[0].path"] = str(folder / "speech")
  if plan:
    (folder / workdir).mkdir()
    (folder / workdir / faults.MARK).touch()
  return commands.run(
    "aigc_jax.train", f"--config=configs/{preset}",
    f"--workdir={folder / workdir}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
    environ={faults.VARIABLE: json.dumps(plan)} if plan else {},
  )  # fmt: skip


def digest(workdir) -> list[int]:
  return json.loads((workdir / "result.json").read_text())["digest"]


def name_of(preset: str) -> str:
  return preset.partition(".")[0] + "-" + preset.partition(":")[2]


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILIES)
def test_a_run_that_was_killed_ends_as_one_that_was_not(preset, folder):
  if "clip" in preset:
    pytest.importorskip("sklearn")
  whole, parted = name_of(preset), f"{name_of(preset)}-parted"
  done = train(folder, preset, whole)
  assert done.returncode == 0, done.stderr
  plan = {"die_at": [{"site": "step", "step": STEPS - 1}]}
  assert train(folder, preset, parted, plan).returncode != 0
  assert not (folder / parted / "result.json").exists()
  done = train(folder, preset, parted)
  assert done.returncode == 0, done.stderr
  assert digest(folder / whole) == digest(folder / parted)


@pytest.mark.slow
def test_a_model_speaks_and_another_writes_down_what_it_says(folder):
  for preset in ("tts.py:digits", "spoken_digits.py:ctc"):
    if not (folder / name_of(preset) / "result.json").exists():
      assert train(folder, preset, name_of(preset)).returncode == 0
  own = f"--workdir={folder}/{name_of('tts.py:digits')}"
  judge = f"--recogniser={folder}/{name_of('spoken_digits.py:ctc')}"

  def said(out: str, *words: str) -> None:
    done = commands.run(
      "aigc_jax.generate", own, f"--out={folder / out}", "--steps=2", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

  said("one.wav", "--prompt=ab")
  said("some.wav", "--prompt=ab", "--prompt=c", "--num_samples=2")
  data = {path.name: path.read_bytes() for path in folder.glob("*.wav")}
  assert set(data) == {"one.wav", *(f"some.{i}.wav" for i in range(4))}
  assert data["one.wav"] == data["some.0.wav"]
  assert len(set(data.values())) == 4
  assert len(decoded(data["one.wav"], "refuse")[0]) % 160 == 0
  said("other.wav", "--prompt=ab", "--weights=average", "--guidance=2")
  assert (folder / "other.wav").read_bytes() != data["one.wav"]
  done = commands.run(
    "aigc_jax.evaluate", own, judge, "--steps=2", "--utterances=3",
    f"--out={folder / 'scores.json'}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  scores = json.loads((folder / "scores.json").read_text())["scores"]
  found = scores["heldout, spoken"]
  assert {"wer", "recorded_wer", "vocoded_wer", "mel_db"} <= set(found)
  assert found["wer"]["items"] == 3 and found["mel_db"]["value"] > 0
  done = commands.run("aigc_jax.evaluate", own)
  assert done.returncode == 0 and "duration" in done.stdout, done.stderr
  done = commands.run("aigc_jax.generate", own, "--prompt=a")
  assert done.returncode == BadConfig.code and "--out=x.wav" in done.stderr


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("--out=x.wav", "--temperature=1"), "--temperature is not of speech"),
    (("--out=x.wav", "--labels=1"), "--labels is not of speech"),
    (("--out=x.wav", "--sampler=walk"), "--sampler 'walk'"),
    (("--out=x.wav", "--num_samples=0"), "--num_samples=0"),
    (("--speakers=1", "--prompt=a"), "--speakers is of speech"),
    (("--grid=2x2", "--out=x.wav"), "--grid"),
  ],
)
def test_flags_of_speech_that_do_not_go_together_are_refused(words, message):
  done = commands.run("aigc_jax.generate", "--workdir=nowhere", *words)
  assert done.returncode == BadConfig.code and message in done.stderr


def test_speech_has_a_judge_of_its_own():
  for words, message in (
    (("--recogniser=x", "--features=y"), "leave one of them out"),
    (("--recogniser=x", "--images=3"), "add --features=DIR"),
    (("--utterances=3",), "add --recogniser=DIR"),
    (("--steps=3",), "--recogniser=DIR"),
    (("--recogniser=x", "--beams=2"), "--beams is of text"),
  ):
    done = commands.run("aigc_jax.evaluate", "--workdir=nowhere", *words)
    assert done.returncode == BadConfig.code and message in done.stderr
