"""The training command, as typed at a terminal."""

import json
import re
import shlex
import subprocess
import time
import types
from pathlib import Path

import numpy as np
import pytest

from aigc_jax import run
from aigc_jax import train as training
from aigc_jax.data.sound import decoding
from aigc_jax.errors import BadConfig
from aigc_jax.planning import summary
from configs import gpt2, llama, quickstart
from tests import commands

ROOT = Path(__file__).parents[1]
CONFIG = "--config=tests/faults/tiny.py:"


def train(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
  return commands.run("aigc_jax.train", *argv, cwd=cwd)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["step_limit", "compile_limit"])
def test_seconds_that_end_a_run_at_once_or_never_are_refused(
  monkeypatch, name, value
):
  """Of nan nothing is more: there would be no watchdog."""
  known = {"step_limit": 600.0, "compile_limit": float("inf"), name: value}
  flags = {k: types.SimpleNamespace(value=x) for k, x in known.items()}
  monkeypatch.setattr(training, "FLAGS", flags)
  with pytest.raises(BadConfig, match=f"--{name}={value}: expected seconds"):
    training._check_limits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  for name in ("plain", "rhymes"):
    lines = [f"{name} line {i} of a text to learn\n" for i in range(400)]
    (path / f"{name}.txt").write_text("".join(lines))
  return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "deep" / "er"
  done = train(f"{CONFIG}{folder}", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_a_run_leaves_what_the_readme_promises(finished):
  workdir, done = finished
  for name in ("config.json", "run.json", "metrics.jsonl", "result.json"):
    assert (workdir / name).stat().st_size > 0
  assert (workdir / "checkpoints" / "20" / "manifest.json").is_file()
  assert list((workdir / "tensorboard").iterdir())
  assert (workdir / "samples" / "20.txt").is_file()
  assert (workdir / "tokenizer").is_dir()
  rows = [json.loads(x) for x in open(workdir / "metrics.jsonl")]
  for row in rows:
    assert {"step", "tokens", "flops", "seconds"} <= row.keys()
  last = {k for row in rows if row["step"] == 20 for k in row}
  assert {
    "train/loss", "norm/grad", "optim/learning_rate", "data/batch_hash",
    "speed/tokens_per_second", "eval/heldout/loss",
    "eval/heldout/bits_per_byte", "eval/heldout/gzip_bits_per_byte",
  } <= last  # fmt: skip
  assert "speed/mfu" not in last  # nobody knows the peak of this processor
  for word in ("eval/heldout/loss", "generate", "evaluate", "export"):
    assert word in done.stdout


def test_the_same_line_again_says_it_is_finished(finished, folder):
  workdir, _ = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  again = train(f"{CONFIG}{folder}", f"--workdir={workdir}")
  assert again.returncode == 0 and "is finished" in again.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_fewer_steps_than_a_finished_run_has_are_told_with_ways_out(
  finished, folder
):
  """Each of them leads to the step that it names."""
  workdir, _ = finished
  steps = json.loads((workdir / "config.json").read_text())["steps"]
  less = (f"--config.steps={steps - 1}", "--allow_change=steps")
  done = train(f"{CONFIG}{folder}", f"--workdir={workdir}", *less)
  assert done.returncode == 0, done.stderr
  assert f"steps={steps - 1} asks for fewer than it has taken" in done.stdout
  assert "another --workdir" in done.stdout
  kept = [int(p.name) for p in (workdir / "checkpoints").iterdir()
          if p.name.isdigit() and int(p.name) < steps]  # fmt: skip
  assert (f"--rewind={max(kept)}" in done.stdout) if kept else True


def test_another_config_in_its_work_directory_is_refused(finished, folder):
  workdir, _ = finished
  other = train(
    f"{CONFIG}{folder}", f"--workdir={workdir}", "--config.optim.b1=0.5"
  )
  assert other.returncode == 78
  assert "optim.b1: 0.9 -> 0.5" in other.stderr
  assert "--allow_change=optim.b1" in other.stderr
  assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    (["--config=nowhere.py"], "no such file"),
    (["--config", "nowhere.py", "--print_config"], "no such file"),
    ([], "--config=PATH.py is missing"),
    (["--config=configs/quickstart.py"], "--workdir=DIR is missing"),
    (["--config=configs/gpt2.py:smal"], "did you mean 'small'"),
    (
      ["--config=configs/quickstart.py", "--config.data.bach=3"],
      "did you mean 'batch'",
    ),
    (["--config=configs/quickstart.py", "--b1=1"], "--config.optim.b1=1"),
    (
      ["--config=configs/quickstart.py", "--data.path=x"],
      "--config.data.path=x",
    ),
    (["--config=configs/quickstart.py", "--workdir=/x/\udcff"], "is not UTF-8"),
  ],
)
def test_a_wrong_line_is_answered_with_the_right_one(argv, words):
  refused = train(*argv)
  assert refused.returncode == 78
  assert words in refused.stderr and "Traceback" not in refused.stderr


def test_a_config_is_found_from_another_folder_with_what_it_imports(tmp_path):
  path = f"{ROOT}/configs/quickstart.py"
  told = train(f"--config={path}", "--print_config").stdout
  for words in ([f"--config={path}"], ["-config", path]):
    found = train(*words, "--print_config", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == told


def test_a_config_that_imports_what_is_missing_is_told_so(tmp_path):
  (tmp_path / "mine.py").write_text("import nowhere_at_all\n")
  refused = train(f"--config={tmp_path}/mine.py")
  assert refused.returncode == 78
  assert "'nowhere_at_all'" in refused.stderr
  assert "Traceback" not in refused.stderr


def test_a_mesh_that_does_not_fit_is_refused_before_data(tmp_path):
  began = time.monotonic()
  refused = train(
    "--config=configs/quickstart.py", f"--workdir={tmp_path}/x",
    "--config.mesh.tensor=3", f"--config.data.root={tmp_path}/root",
  )  # fmt: skip
  assert refused.returncode == 78 and "does not fit" in refused.stderr
  assert not (tmp_path / "root").exists() and not (tmp_path / "x").exists()
  assert time.monotonic() - began < 60  # a hang, not a benchmark


def described(config) -> str:
  config.data.root = "/nonexistent"
  plain = run.read(config)
  plain["mesh"] |= {"fsdp": 1, "data": 8}
  return summary.describe(plain, run.make_mesh(plain))


def test_a_dry_run_tells_parameters_memory_tokens_and_flops():
  text = described(gpt2.get_config("small,stdlib"))
  assert "124,439,808" in text
  for word in ("optimizer state", "tokens per step", "FLOPs", "epochs"):
    assert word in text


def test_a_dry_run_of_a_large_model_allocates_nothing():
  assert "8,030,261,248" in described(llama.get_config("llama3_8b,stdlib"))


def test_the_quickstart_is_a_config_like_any_other():
  plain = run.read(quickstart.get_config())
  assert plain["data"]["sources"][0]["name"] == "stdlib"


def test_the_commands_a_run_prints_can_be_typed_as_they_stand():
  config = run.read(quickstart.get_config())
  workdir = Path("/tmp/my runs/a'b")
  text = training.footer(workdir, {"step": 3}, config)
  lines = [line.strip() for line in text.splitlines()]
  typed = [shlex.split(x) for x in lines[lines.index("Next") + 1 :]]
  assert all(
    f"--workdir={workdir}" in words or f"--logdir={workdir}" in words
    for words in typed
  )
  assert "--prompt=def main(" in typed[0]
  here = training.footer(Path.cwd() / "runs" / "x", {"step": 3}, config)
  assert "--workdir=runs/x " in here and str(Path.cwd()) not in here
  config["evaluate"] = {}  # nothing is known of what the text is like
  assert "--prompt" not in training.footer(workdir, {"step": 3}, config)


def test_a_run_exported_before_is_told_a_folder_that_is_not_there(tmp_path):
  config = run.read(quickstart.get_config())
  first = training.footer(tmp_path, {"step": 3}, config)
  assert f"--out={tmp_path}/hf\n" in first
  (tmp_path / "hf").mkdir()
  later = training.footer(tmp_path, {"step": 5}, config)
  assert f"--out={tmp_path}/hf-5\n" in later


def test_a_run_says_whether_it_wrote_or_drew(tmp_path):
  config = run.read(quickstart.get_config())
  (tmp_path / "samples").mkdir()
  assert "text it wrote" in training.footer(tmp_path, {"step": 3}, config)
  (tmp_path / "samples" / "3.png").touch()
  assert "images it drew" in training.footer(tmp_path, {"step": 3}, config)


# By config, what `generate` is told, and whether there is an `export`.
USES = {
  "dit.py:tiny,digits": ("--weights=average --grid=4x8 --out=x.png", False),
  "unet.py:tiny,digits": ("--weights=average --grid=4x8 --out=x.png", False),
  "gan.py:tiny,digits": ("--weights=average --grid=4x8 --out=x.png", False),
  "vae.py:tiny,digits": ("--grid=4x8 --out=x.png", False),
  "dalle.py:tiny,digits": ("--grid=4x8 --out=x.png", False),
  "vq.py:tiny,digits": ("--grid=2x4 --reconstruct --out=x.png", False),
  "vq.py:tiny_gan,digits": ("--grid=2x4 --reconstruct --out=x.png", False),
  "tts.py:digits": ("--weights=average --prompt=hello --out=x.wav", False),
  "ctc.py:small": ("--audio=FILE.wav", False),
  "whisper.py:tiny": ("--audio=FILE.wav", True),
  "transformer.py:base": ("--prompt=hello", False),
  "t5.py:small": ("--prompt=hello", True),
  "vae.py:sd": ("--grid=4x8 --out=x.png", True),
  "clip.py:digits": (None, True),
  "distilbert.py:base": (None, "--part=student"),
}


def test_a_translator_is_given_a_held_out_source_to_write_from(tmp_path):
  pairs = [dict(source=f"source {i}", target=f"t {i}") for i in range(60)]
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, pairs)))
  source = dict(kind="json", path=str(path), source="source", target="target")
  config = run.read(run.configured("configs/transformer.py:base", []))
  config["data"] |= dict(sources=[source], validation=0.1)
  text = training.footer(Path("runs/a"), {"step": 60}, config)
  (line,) = [x for x in text.splitlines() if "aigc_jax.generate" in x]
  asked = shlex.split(line)[-1].removeprefix("--prompt=")
  apart = run.data_of(config).texts("validation")
  assert asked == apart[0][0]
  path.unlink()  # data that is gone is no reason to fail at the end
  assert "--prompt=hello" in training.footer(Path("a"), {"step": 60}, config)


def test_a_model_that_hears_is_given_a_file_of_its_data(tmp_path):
  (tmp_path / "a b").mkdir()
  for name, samples in (("a b/long", 40 * 16_000), ("a b/short", 1600)):
    sound = np.full(samples, 99, np.int16)
    (tmp_path / f"{name}.wav").write_bytes(decoding.wav(sound))
    (tmp_path / f"{name}.txt").write_text("three")
  config = run.read(run.configured("configs/ctc.py:small", []))
  source = dict(kind="folder", path=str(tmp_path), weight=1.0)
  config["data"] |= dict(sources=[source], tokenizer="bytes", seconds=30.0)
  text = training.footer(Path("runs/a"), {"step": 60}, config)
  (line,) = [x for x in text.splitlines() if "aigc_jax.generate" in x]
  assert shlex.split(line)[-1] == f"--audio={tmp_path}/a b/short.wav"


@pytest.mark.parametrize("name", USES)
def test_a_run_prints_the_commands_that_its_model_is_used_by(name):
  config = run.configured(f"configs/{name}", [])
  config = run.read(config)
  text = training.footer(Path("runs/a"), {"step": config["steps"]}, config)
  short = training.footer(Path("runs/a"), {"step": 60}, config)
  assert "--weights=average" not in short
  found = re.findall(r"python -m aigc_jax\.(\w+) (.*)", text)
  told = {command: words.split() for command, words in found}
  flags, exports = USES[name]
  if flags is None:
    assert "generate" not in told
  else:
    words = flags.replace("--out=", "--out=runs/a/").split()
    assert told["generate"] == ["--workdir=runs/a", *words]
  assert bool(exports) == ("export" in told)
  if isinstance(exports, str):
    assert told["export"][-1] == exports
