"""The command: prompts from anywhere, refusals before anything is read."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from absl import flags
from flax import linen as nn

from aigc_jax import command, generate, run, sharding
from aigc_jax.data import load_tokenizer
from aigc_jax.data.sound import decoding
from aigc_jax.errors import BadConfig, BadData, Refusal, StorageFailure
from aigc_jax.layers.readout import Aligned, Readout
from aigc_jax.presets import dit, vq
from aigc_jax.sampling import prompts
from tests import fresh, kinds, tiny

MODEL = tiny.LLAMA | dict(kind="decoder", vocab=257, layers=1, unroll=0)


@pytest.fixture(scope="session")
def loaded():
  """What run.load gives, for a tiny model over bytes."""
  model = run.model_of({"model": MODEL})
  tokens = {"tokens": jax.numpy.zeros((1, 2), "int32")}
  params = fresh.variables(model, tokens)["params"]
  axes = {axis: 1 for axis in sharding.AXES}
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:1])
  config = {"model": MODEL}
  tokenizer = load_tokenizer("bytes")
  return run.Loaded(model, params, tokenizer, config, mesh, 7, "hf:tiny")


def giving(found):
  """A `run.load` of this model, which is shown to who would refuse it."""

  def load(where, *, suits=None, **_):
    if suits:
      suits(found.model, found.config)
    return found

  return load


@pytest.fixture
def call(loaded, monkeypatch):
  """call("--flag=value", ...): the exit status of the command."""
  monkeypatch.setattr(run, "load", giving(loaded))
  values = flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", values)
  for module in (command.flags, generate.flags):
    monkeypatch.setattr(module, "FLAGS", values)
  monkeypatch.setattr(generate, "FLAGS", values)
  for kind in ("string", "integer", "float", "list", "multi_string", "bool"):
    name = f"DEFINE_{kind}"
    define = getattr(flags, name)
    monkeypatch.setattr(
      flags, name,
      lambda *a, define=define, **kw: define(*a, flag_values=values, **kw),
    )  # fmt: skip
  generate.define_flags()

  def run_it(*argv):
    values(["generate", *argv])
    return generate.main()

  return run_it


def test_one_prompt_is_streamed_after_itself(call, capsys):
  assert call("--workdir=x", "--prompt=def ", "--max_tokens=9") == 0
  out = capsys.readouterr()
  assert out.out.startswith("def ") and out.out.endswith("\n")
  assert out.err.startswith("reading x ...\n9 tokens") and "tokens/s" in out.err


def test_completions_are_json_lines_the_same_for_the_same_seed(
  call, capsys, tmp_path
):
  out = tmp_path / "out.jsonl"
  (tmp_path / "in.jsonl").write_text('{"prompt": "ab"}\n{"prompt": ""}\n')
  line = (
    "--workdir=x", f"--prompts_file={tmp_path / 'in.jsonl'}", f"--out={out}",
    "--num_samples=2", "--max_tokens=5", "--seed=3", "--top_k=9",
  )  # fmt: skip
  assert call(*line) == 0
  first = [json.loads(x) for x in out.read_text("utf-8").splitlines()]
  assert [(c["prompt"], c["sample"]) for c in first] == [
    ("ab", 0), ("ab", 1), ("", 0), ("", 1),
  ]  # fmt: skip
  assert call(*line) == 0
  again = [json.loads(x) for x in out.read_text("utf-8").splitlines()]
  assert first == again
  assert "--- prompt 1, sample 1" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flag, error, message",
  [
    ("--temperature=nan", BadConfig, "temperature=nan"),
    ("--top_k=258", BadConfig, "1 to 257"),
    ("--top_k=-1", BadConfig, "top_k=-1"),
    ("--max_tokens=0", BadConfig, "--max_tokens=0"),
    ("--num_samples=-2", BadConfig, "--num_samples=-2"),
    ("--num_samples=1000000000", BadConfig, "from 1 to 10,000,000"),
    ("--max_tokens=100000000000000000000", BadConfig, "from 1 to 10,000,000"),
    ("--stop=", BadConfig, "--stop"),
    ("--temperature=1e-7", BadConfig, "temperature=1e-07"),
    ("--temperature=1e300", BadConfig, r"temperature=1e\+300.*at most"),
    ("--repetition_penalty=1e300", BadConfig, "repetition_penalty.*to 1e"),
    ("--top_p=1e-50", BadConfig, "top_p=1e-50"),
    ("--seed=-1", BadConfig, "--seed=-1: expected 0 to 4294967295"),
    ("--seed=4294967296", BadConfig, "--seed=4294967296: expected 0 to"),
    ("--workdir=", BadConfig, "--workdir"),
    ("--prompts_file=/nowhere", BadConfig, "give one of them"),
    ("--out=/nowhere/x.jsonl", StorageFailure, "no folder /nowhere"),
    ("--out=/tmp", StorageFailure, "is a folder"),
    ("--out=/proc/x.jsonl", StorageFailure, "cannot be written"),
  ],
)
def test_what_cannot_be_done_is_refused(flag, error, message, call, capsys):
  with pytest.raises(error, match=message):
    call("--workdir=x", "--prompt=a", flag)
  assert capsys.readouterr().out == ""


def test_a_special_token_in_a_prompt_is_text_and_that_is_said(call, capsys):
  line = ("--workdir=x", "--prompt=<|endoftext|>ab", "--max_tokens=2")
  assert call(*line) == 0
  said = capsys.readouterr().err
  assert "'<|endoftext|>' in a prompt is read as text; --special" in said
  assert call(*line, "--special") == 0
  assert "is read as text" not in capsys.readouterr().err


def test_a_folder_without_a_template_is_not_talked_to(call):
  with pytest.raises(BadConfig, match="no chat template"):
    call("--workdir=x", "--prompt=hello", "--chat")


def test_a_message_without_words_is_asked_for(call):
  for words in ([], ["--prompt="]):
    with pytest.raises(BadConfig, match="add --prompt='Hi!'"):
      call("--workdir=x", "--chat", *words)


def test_conversations_of_files(tmp_path):
  path = tmp_path / "c.jsonl"
  talk = [{"role": "user", "content": "a"}]
  records = [{"messages": talk}, {"prompt": "a"}]
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  assert prompts.prompts_of([], str(path), True) == [talk, talk]
  assert prompts.prompts_of(["a"], "", True) == [talk]
  with pytest.raises(BadData, match='line 1: expected {"prompt": "..."}$'):
    prompts.prompts_of([], str(path))
  for wrong in (
    [],
    [{}],
    [{"role": "user"}],
    "a",
    [{"role": 1, "content": ""}],
  ):
    path.write_text(json.dumps({"messages": wrong}))
    with pytest.raises(BadData, match="messages.*role"):
      prompts.prompts_of([], str(path), True)


@pytest.mark.parametrize("samples", [1, 2])
def test_it_is_said_when_the_model_ends_the_text(
  samples, call, loaded, capsys, monkeypatch
):
  """Every id ends it here, so that the first one does."""
  monkeypatch.setattr(
    type(loaded.tokenizer), "special", {"eos_token_id": list(range(257))}
  )
  line = ("--workdir=x", "--prompt=a", "--max_tokens=9")
  assert call(*line, f"--num_samples={samples}") == 0
  said = capsys.readouterr()
  if samples == 1:
    words = "the model ended the text after 1 of 9 tokens, before any text"
    assert words in said.err
  else:
    assert "sample 1 (the model ended the text)" in said.out


def test_prompts_of_files(tmp_path, monkeypatch):
  path = tmp_path / "p.txt"
  path.write_bytes("one\r\ntwo é\n\nfour\n".encode())
  assert prompts.prompts_of([], str(path)) == ["one", "two é", "", "four"]
  path.write_bytes(b"\xff")
  with pytest.raises(BadData, match="UTF-8"):
    prompts.prompts_of([], str(path))
  path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
  with pytest.raises(BadData, match="line 2"):
    prompts.prompts_of([], str(path))
  with pytest.raises(BadData, match="No such file"):
    prompts.prompts_of([], str(tmp_path / "none"))
  assert prompts.prompts_of([], "") == [""]
  path = tmp_path / "p.jsonl"
  path.write_bytes(b'\xef\xbb\xbf\n{"prompt": "a"}\r\n \r\n{"prompt": ""}\n\n')
  assert prompts.prompts_of([], str(path)) == ["a", ""]
  for text in ("\n", '{"prompt": "\\ud800"}', '{"a":' * 100_000, "[]", "3"):
    path.write_text(text)
    with pytest.raises(BadData, match="expected|no prompt"):
      prompts.prompts_of([], str(path))


@pytest.mark.parametrize(
  "where, step", [("hf:/x", 3), ("/x", -1), ("/x", "last"), ("/x", True)]
)
def test_a_step_that_cannot_be_is_refused(where, step):
  with pytest.raises(BadConfig, match="step="):
    run.load(where, step=step)


def test_learned_positions_are_the_limit_of_an_engine(loaded):
  model = {"position": "learned", "position_length": 12, "unroll": 0}
  config = {"model": MODEL | model}
  other = run.Loaded(
    loaded.model, loaded.params, loaded.tokenizer, config, loaded.mesh, 0, "x"
  )
  engine = other.engine(generate.Sampling(), seed=0, group=2)
  with pytest.raises(Refusal, match="12 positions"):
    engine.check(5, 8)
  assert other.length == 12


def test_what_is_unsaid_of_tokens_is_what_a_model_has_room_for(
  call, loaded, monkeypatch, capsys
):
  learned = {"position": "learned", "position_length": 12}
  config = {"model": MODEL | learned}
  model = run.model_of(config)
  tokens = {"tokens": jax.numpy.zeros((1, 2), "int32")}
  params = fresh.variables(model, tokens)["params"]
  short = dataclasses.replace(loaded, model=model, params=params, config=config)
  monkeypatch.setattr(run, "load", giving(short))
  assert call("--workdir=x", "--prompt=abcde", "--temperature=0") == 0
  assert "7 tokens" in capsys.readouterr().err
  with pytest.raises(BadConfig, match="max_tokens=7 fits"):
    call("--workdir=x", "--prompt=abcde", "--max_tokens=64")


@pytest.mark.parametrize(
  "words",
  [("--audio=x.wav",), ("--grid=2x2", "--out=x.png"),
   ("--prompt=a", "--out=x.wav"), ("--grid=2x2", "--reconstruct",
   "--out=x.png")],
)  # fmt: skip
def test_a_model_that_cannot_is_refused_before_it_is_said_to_be_read(
  call, loaded, words, monkeypatch, capsys, tmp_path
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(generate, "clip_of", lambda path: np.zeros(9, np.int16))
  with pytest.raises(BadConfig):
    call("--workdir=x", *words)
  assert "reading" not in capsys.readouterr().err


def test_an_output_that_cannot_be_finished_leaves_the_old_one(
  call, tmp_path, monkeypatch
):
  out = tmp_path / "out.jsonl"
  out.write_text("old")

  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(StorageFailure, match=f"--out={out}.*No space left"):
    call("--workdir=x", "--prompt=a", "--max_tokens=1", f"--out={out}")
  assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_could_never_fit_is_refused_before_it_is_made():
  model = tiny.build("llama")  # 3 layers of 2 key heads of width 8, float32
  each = 2 * 3 * 2 * 8 * 4
  params = tiny.params_of("llama")
  generate.check_room(model, params, 100, rows=5, memory=500 * each)
  with pytest.raises(BadConfig, match="expected at most 99 "):
    generate.check_room(model, params, 100, rows=5, memory=499 * each)
  assert command.room() > 2**28


def test_beams_are_the_likeliest_and_told_with_their_scores(call, capsys):
  assert call("--workdir=x", "--prompt=a", "--max_tokens=3", "--beams=2",
              "--num_samples=2") == 0  # fmt: skip
  out = capsys.readouterr().out
  assert out.count("score -") == 2 and "sample 1" in out


@pytest.mark.parametrize(
  ("words", "told"),
  [
    (("--beams=2", "--temperature=0.5"), "--temperature draws"),
    (("--beams=2", "--num_samples=3"), "--num_samples=3"),
    (("--beams=-1",), "beams=-1"),
    (("--length_penalty=2",), "--beams"),
  ],
)
def test_flags_that_do_not_go_with_beams_are_named(call, words, told):
  with pytest.raises(BadConfig, match=told):
    call("--workdir=x", "--prompt=a", "--max_tokens=3", *words)


class Plain(nn.Module):
  """Draws its label's brightness, whatever the noise."""

  image, noise, classes, gradual = (4, 4, 1), (4, 4, 1), 3, True

  def draw(self, noise, time_B, labels_B):
    bright = (labels_B.astype("float32") - 1).reshape(-1, 1, 1, 1)
    return noise - (bright + 0 * noise)


class AtOnce(Plain):
  """Draws in no steps."""

  gradual = False


@pytest.fixture
def drawing(loaded, call, monkeypatch):
  config = {
    "model": {"kind": "dit"},
    "data": dit.get_config("tiny,digits").data.to_dict(),
    "objective": dict(kind="flow"),
  }
  found = run.Loaded(Plain(), {}, None, config, loaded.mesh, 7, "x")
  monkeypatch.setattr(run, "load", giving(found))
  return call


def test_a_grid_has_a_label_in_each_row_and_is_the_same_each_time(
  drawing, tmp_path
):
  pil = pytest.importorskip("PIL.Image")
  out = tmp_path / "x.png"
  line = ("--workdir=x", "--grid=3x2", f"--out={out}", "--steps=1",
          "--sampler=ddim")  # fmt: skip
  assert drawing(*line) == 0
  first = out.read_bytes()
  pixels = np.asarray(pil.open(out))
  rows = [pixels[y + 10, 10] for y in (0, 50, 100)]
  assert rows == [0, 128, 255]
  assert drawing(*line) == 0
  assert out.read_bytes() == first


@pytest.mark.parametrize(
  ("line", "word"),
  [
    (["--grid=4"], "such as 4x8"),
    (["--grid=0x4"], "such as 4x8"),
    (["--grid=900x900"], "10,000"),
    (["--grid=2x2"], "--out=x.png"),
    (["--grid=2x2", "--prompts_file=a"], "--prompts_file is of text"),
    (["--grid=2x2", "--reconstruct", "--prompt=a"], "--prompt draws images"),
    (["--grid=2x2", "--steps=0"], "--steps=0"),
    (["--grid=2x2", "--sampler=hun"], "heun"),
    (["--grid=2x2", "--guidance=nan"], "guidance"),
    (["--grid=2x2", "--seed=-1"], "--seed"),
    (["--guidance=3"], "--grid=4x4"),
    (["--reconstruct"], "--grid=4x4"),
    (["--grid=2x2", "--reconstruct", "--seed=1"], "--seed draws images"),
  ],
)
def test_a_grid_that_cannot_be_is_refused_before_a_model_is_read(
  call, line, word
):
  with pytest.raises(BadConfig, match=word):
    call("--workdir=x", *line)


@pytest.mark.parametrize(
  ("gradual", "line", "word"),
  [
    (False, ["--steps=4"], "--steps: a model of the kind AtOnce does not read"),
    (False, ["--sampler=ddim"], "--sampler: a model of the kind AtOnce"),
    (True, ["--prompt=a"], r"captions, and this one \(Plain\).*give labels"),
    (True, ["--reconstruct"], "a vq or a vae.*not of Plain"),
  ],
)
def test_a_flag_that_a_way_of_drawing_does_not_read_is_refused(
  drawing, tmp_path, monkeypatch, gradual, line, word
):
  pytest.importorskip("PIL")
  if not gradual:
    config = {"data": dict(mean=(0.5,), std=(0.5,)), "model": {}}
    found = run.Loaded(AtOnce(), {}, None, config, None, 7, "x")
    monkeypatch.setattr(run, "load", giving(found))
  with pytest.raises(BadConfig, match=word):
    drawing("--workdir=x", "--grid=2x2", f"--out={tmp_path / 'x.png'}", *line)


class Again(Plain):
  """Makes of an image that image."""

  def reconstruct(self, images):
    return images


def test_images_are_made_again_of_no_others_than_a_run_was_measured_on(
  loaded, call, monkeypatch, tmp_path
):
  pytest.importorskip("PIL")
  pytest.importorskip("sklearn")
  config = vq.get_config("tiny,digits").to_dict()
  config["data"]["root"] = str(tmp_path / "data")
  name = str(tmp_path / "a run")
  found = run.Loaded(Again(), {}, None, config, loaded.mesh, 7, name)
  monkeypatch.setattr(run, "load", giving(found))
  line = ("--workdir=x", "--grid=2x2", "--reconstruct",
          f"--out={tmp_path / 'x.png'}")  # fmt: skip
  # The data that a config names is not read because it names it.
  with pytest.raises(BadData, match="on request only.*'.*a run' --prepare"):
    call(*line)
  assert not list(tmp_path.iterdir())
  found.config["evaluate"].clear()
  with pytest.raises(BadConfig, match="nothing to make again"):
    call(*line)


def test_a_grid_of_a_model_of_text_is_refused_by_name(call, tmp_path):
  pytest.importorskip("PIL")
  with pytest.raises(BadConfig, match="Decoder does not"):
    call("--workdir=x", "--grid=2x2", f"--out={tmp_path / 'x.png'}")


class Echo(nn.Module):
  """Says the first sample of a clip, over and over."""

  blank, stride = 256, 2

  @nn.compact
  def __call__(self, batch):
    steps_B = batch["audio_lengths"] // 320
    first_B1 = jax.numpy.abs(batch["audio"][:, :1].astype("int32"))
    at_BT = jax.numpy.broadcast_to(first_B1, (len(first_B1), 9))
    return Aligned(Readout(jax.nn.one_hot(at_BT, 257), jax.numpy.eye(257)),
                   steps_B, 256)  # fmt: skip


def test_files_of_sound_are_written_down(loaded, call, monkeypatch, tmp_path):
  tokenizer = load_tokenizer("bytes")
  config = {"model": {"kind": "ctc"}}
  found = run.Loaded(Echo(), {}, tokenizer, config, loaded.mesh, 7, "x")
  monkeypatch.setattr(run, "load", giving(found))
  names = []
  for letter in "ab":
    names.append(str(tmp_path / f"{letter}.wav"))
    clip = np.full(3000, ord(letter), np.int16)
    (tmp_path / f"{letter}.wav").write_bytes(decoding.wav(clip))
  out = tmp_path / "x.jsonl"
  given = [f"--audio={name}" for name in names]
  assert call("--workdir=x", *given, f"--out={out}") == 0
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(one["audio"], one["text"]) for one in lines] == [
    (names[0], "a"), (names[1], "b"),
  ]  # fmt: skip
  (tmp_path / "known.txt").write_text("be my b\n")
  words = (f"--words={tmp_path / 'known.txt'}", "--beams=9")
  assert call("--workdir=x", *given, f"--out={out}", *words) == 0
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  texts = [one["text"] for one in lines]
  assert texts[0] != texts[1] and "b" in texts[1].split()
  assert set(" ".join(texts).split()) <= {"be", "my", "b"}


def test_a_file_that_is_no_sound_is_refused_by_name(tmp_path):
  (tmp_path / "c.wav").write_bytes(b"RIFF")
  for name, word in (("c", "neither WAV nor FLAC"), ("d", "No such file")):
    with pytest.raises(BadData, match=f"{name}.wav: {word}"):
      generate.clip_of(str(tmp_path / f"{name}.wav"))
  with pytest.raises(BadConfig, match="--audio=FILE.wav"):
    generate.check_writes(Echo(), "DIR")


USES = {
  "encoder": "evaluate --workdir='a run'",
  "clip": "evaluate --workdir='a run'",
  "unet": "--grid=4x8 --out=x.png",
  "latent": "--grid=4x8 --out=x.png",
  "image tokens masked": "--grid=4x8 --out=x.png",
  "vq": "--grid=2x4 --reconstruct --out=x.png",
  "ctc": "--audio=FILE.wav",
  "whisper": "--audio=FILE.wav",
  "tts": "--out=x.wav",
}


def test_of_each_kind_that_writes_nothing_it_is_told_what_is_of_use():
  for name in kinds.KINDS:
    model = kinds.build(name)
    if name == "decoder":
      generate.check_writes(model, "a run")
      continue
    with pytest.raises(BadConfig) as told:
      generate.check_writes(model, "a run")
    assert USES.get(name, "") in str(told.value), name


def test_a_grid_that_shows_more_than_is_held_out_names_one_that_fits(
  loaded, monkeypatch
):
  held = types.SimpleNamespace(batches=1)
  batch = {"weights": np.ones(4), "images": np.zeros((4, 8, 8, 1))}
  monkeypatch.setattr(run, "heldout_sets", lambda *_, **__: iter([("", held)]))
  monkeypatch.setattr(generate.data, "batches", lambda *_: [(0, batch)])
  asked = types.SimpleNamespace(grid="4x8", workdir="DIR", part="")
  monkeypatch.setattr(generate, "FLAGS", asked)
  draws = dataclasses.replace(loaded, model=kinds.build("vq"))
  with pytest.raises(BadConfig, match="measured on 4 held out.*--grid=2x4$"):
    generate.reconstructed(draws, 4, 8)


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--prompt=a", "--words=x"), "add --audio"),
    (("--audio=a.wav", "--words=x"), "add --beams"),
    (("--audio=a.wav", "--words_reward=2"), "add --words"),
    (("--audio=a.wav", "--words=x", "--beams=4", "--length_penalty=2"), "not:"),
    (("--audio=a.wav", "--words=x", "--beams=4", "--words_weight=-1"), "least"),
    (("--audio=a.wav", "--words=x", "--beams=4"), "--words=x: No such file"),
  ],
)
def test_flags_of_known_words_are_checked_before_a_model_is_read(
  flags, told, call, monkeypatch
):
  monkeypatch.setattr(run, "load", None)
  with pytest.raises((BadConfig, BadData), match=told):
    call("--workdir=x", *flags)


@pytest.mark.parametrize("flag", ["--prompt=a", "--seed=1", "--top_k=2"])
def test_flags_of_text_do_not_go_with_sound(flag, call):
  with pytest.raises(BadConfig, match=f"{flag.partition('=')[0]} is of text"):
    call("--workdir=x", "--audio=a.wav", flag)
