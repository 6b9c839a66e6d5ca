r"""Continues prompts with a trained model, or draws images with one.

  python -m aigc_jax.generate --workdir=DIR --prompt="def main("
  python -m aigc_jax.generate --workdir=hf:FOLDER --prompts_file=in.jsonl \
      --num_samples=4 --temperature=0.8 --top_p=0.95 --out=out.jsonl

  python -m aigc_jax.generate --workdir=hf:FOLDER --chat --prompt="Hi!"

Prompts come from --prompt (repeatable) or a file: one a line, or JSON lines
with "prompt"; "-" is standard input. A single continuation is written to the
terminal as it comes. A prompt's continuations depend on the prompt, the seed
and their number, not on the other prompts.

With --beams=4 the likeliest are searched for instead of drawn. A model that
reads a source, to translate it for one, reads the prompt as such.

With --chat a prompt is a message of a user (or JSON lines with "messages"),
written as the folder's chat template has it; --special reads special tokens
that a prompt spells as such, which else are text like any other.

  python -m aigc_jax.generate --workdir=DIR --grid=4x8 --out=x.png --guidance=3

draws 4 rows of 8 images. A row is of one label, of a model that knows labels,
or of one --prompt="a seven" (repeatable), of one that reads captions; an image
depends on the seed, its number and that. With --reconstruct each second row is
what a VQ or a VAE makes of the held-out images above it.

  python -m aigc_jax.generate --workdir=DIR --audio=x.wav --audio=y.flac

writes what is said in files of sound, by a model that hears.

  python -m aigc_jax.generate --workdir=DIR --prompt="three" --out=x.wav

says it, by a model that speaks; several samples are x.0.wav, x.1.wav, ..., each
a function of its prompt, the seed and its number.
"""

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from aigc_jax import command, data, files, run, tree
from aigc_jax.data.sound import decoding
from aigc_jax.errors import BadConfig, BadData, choose
from aigc_jax.sampling import (
  chat,
  images,
  png,
  speech,
  transcripts,
  uses,
  wordlist,
)
from aigc_jax.sampling.beam import Beams, search_texts
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.logits import Sampling, check_seed
from aigc_jax.sampling.prompts import prompts_of
from aigc_jax.sampling.text import generate, reader
from aigc_jax.terminal import counted

FLAGS = flags.FLAGS
# How a continuation ended, in words.
ENDS = {
  "eot": "the model ended the text",
  "stop": "a stop string came",
  "length": "--max_tokens reached",
}


# Of tokens, continuations and rows; far beyond it, lists of them fill memory.
MOST = 10**7
MOST_IMAGES = 10_000
MOST_SOUNDS = 10_000


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("workdir", "", "folder of the run, or hf:FOLDER")
  flags.DEFINE_integer("step", None, "checkpoint to use; the last by default")
  flags.DEFINE_string("weights", "raw", "or average, where a run keeps one")
  flags.DEFINE_string(
    "part", "", "of a model of several roles, such as student"
  )
  flags.DEFINE_multi_string(
    "prompt", [], "text to continue, or captions of a grid's rows; repeatable"
  )
  flags.DEFINE_string("prompts_file", "", "a prompt a line, or JSON lines; -")
  flags.DEFINE_bool("chat", False, "prompts are messages to a chat model")
  flags.DEFINE_bool("special", False, "special tokens in prompts are such")
  flags.DEFINE_integer("max_tokens", 64, "tokens to make at most")
  flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token: greedy")
  flags.DEFINE_integer("top_k", 0, "choose among the k likeliest; 0 is off")
  flags.DEFINE_float("top_p", 1.0, "choose among the likeliest of this mass")
  flags.DEFINE_float("min_p", 0.0, "least probability, as part of the largest")
  flags.DEFINE_float("repetition_penalty", 1.0, "1.2 avoids tokens seen before")
  flags.DEFINE_multi_string("stop", [], "text to stop before; repeatable")
  flags.DEFINE_integer("seed", 0, "of the random choices")
  flags.DEFINE_integer("num_samples", 1, "continuations of each prompt")
  flags.DEFINE_integer("batch", 8, "continuations made together")
  flags.DEFINE_integer(
    "beams", 0, "keep so many at each step, the likeliest; 0 draws tokens"
  )
  flags.DEFINE_float(
    "length_penalty", 1.0, "of beams: more favours long ones, less short ones"
  )
  wordlist.define_flags()
  flags.DEFINE_multi_string(
    "audio", [], "WAV or FLAC to write down; repeatable"
  )
  flags.DEFINE_string(
    "out", "", "file for the continuations, as JSON lines; x.wav is spoken"
  )
  flags.DEFINE_string("grid", "", "ROWSxCOLUMNS of images to draw, into --out")
  flags.DEFINE_integer("steps", 50, "of images and speech: steps from noise")
  flags.DEFINE_string(
    "sampler", "heun", "of images and speech: euler, heun or ddim"
  )
  flags.DEFINE_float(
    "guidance", 1.0, "towards the label, or what is said; 1 is off"
  )
  flags.DEFINE_bool(
    "reconstruct", False, "each second row of a grid is made of that above it"
  )
  flags.DEFINE_list(
    "speakers", [], "numbers of who speaks, of samples in turn; all of them"
  )
  flags.DEFINE_list("labels", [], "of the rows of a grid in turn; all of them")


# Flags of text, and those of images; each but with its own.
OF_TEXT = (
  "prompt", "prompts_file", "chat", "special", "max_tokens", "temperature",
  "top_k", "top_p", "min_p", "repetition_penalty", "stop", "num_samples",
  "beams", "length_penalty", *wordlist.FLAGS,
)  # fmt: skip
OF_IMAGES = ("steps", "sampler", "guidance", "labels", "reconstruct")
OF_DRAWING = ("steps", "sampler", "guidance", "labels", "prompt", "seed")
OF_SOUND = ("max_tokens", "beams", "length_penalty", *wordlist.FLAGS)
OF_SPEECH = ("prompt", "prompts_file", "num_samples")  # and of text
ONLY_IMAGES = ("labels", "reconstruct")


def main() -> int:
  """The command; the exit status."""
  if FLAGS.grid and FLAGS.audio:
    raise BadConfig("--grid is of images, --audio of sound: leave one out")
  spoken = FLAGS.out.lower().endswith(".wav")
  if FLAGS["speakers"].present and not spoken:
    raise BadConfig("--speakers is of speech: add --prompt=TEXT --out=x.wav")
  if FLAGS.grid and spoken:
    raise BadConfig(f"--grid is of images, --out={FLAGS.out} is not")
  if FLAGS.grid:
    return draw()
  if spoken and not FLAGS.audio:
    return speak()
  for name in OF_IMAGES:
    if FLAGS[name].present:
      raise BadConfig(f"--{name} is of images: add --grid=4x4 --out=x.png")
  if FLAGS.audio:
    return write_down()
  for name in wordlist.FLAGS:
    if FLAGS[name].present:
      raise BadConfig(f"--{name} is of sound: add --audio=x.wav")
  return write_on()


def loaded_model(check: Callable[[nn.Module], None]) -> run.Loaded:
  """The model that the flags name, as it writes or draws the fastest.

  check: refuses a model that cannot do what is asked, before it is read.
  """

  def suits(model: nn.Module, _) -> None:
    check(model)
    command.tell_reading(FLAGS.workdir)

  return run.load(
    FLAGS.workdir, step=FLAGS.step, weights=FLAGS.weights, part=FLAGS.part,
    suits=suits, unroll=None, remat="none",
  )  # fmt: skip


def speak() -> int:
  """Prompts as sound; the exit status."""
  for name in (*OF_TEXT, *ONLY_IMAGES):
    if FLAGS[name].present and name not in OF_SPEECH:
      raise BadConfig(
        f"--{name} is not of speech, which --out={FLAGS.out} asks for: leave "
        "one out"
      )
  check_steps()
  if not 1 <= FLAGS.num_samples <= MOST_SOUNDS:
    raise BadConfig(
      f"--num_samples={FLAGS.num_samples}: expected from 1 to {MOST_SOUNDS:,}"
    )
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR is missing")
  prompts = prompts_of(FLAGS.prompt, FLAGS.prompts_file)
  names = sound_names(FLAGS.out, len(prompts) * FLAGS.num_samples)
  for name in names:
    command.check_out(name)
  loaded = loaded_model(lambda m: speech.check_speaks(m, f"--out={FLAGS.out}"))
  voices = speech.speakers_of(
    FLAGS.speakers, FLAGS.num_samples, loaded.model.speakers
  )
  samples = range(FLAGS.num_samples)
  lines = [loaded.line(p, int(voices[i])) for p in prompts for i in samples]
  with jax.set_mesh(loaded.mesh):
    synthesiser = loaded.synthesiser(
      sampler=FLAGS.sampler, steps=FLAGS.steps, guidance=FLAGS.guidance,
      seed=FLAGS.seed,
    )  # fmt: skip
    sounds = synthesiser(lines, FLAGS.batch, [*samples] * len(prompts))
  if not command.is_first():
    return 0
  for i, (name, sound) in enumerate(zip(names, sounds, strict=True)):
    files.write_out(name, decoding.wav(sound))
    seconds, text = len(sound) / decoding.RATE, prompts[i // len(samples)]
    print(f"{name}: {seconds:.2f} seconds of step {loaded.step}: {text}")
  return 0


def sound_names(out: str, count: int) -> list[str]:
  """Where so many samples go: x.wav, or x.0.wav, x.1.wav, ..."""
  if count > MOST_SOUNDS:
    raise BadConfig(f"{count:,} samples: expected at most {MOST_SOUNDS:,}")
  stem, end = out[:-4], out[-4:]
  return [out] if count == 1 else [f"{stem}.{i}{end}" for i in range(count)]


def check_steps() -> None:
  """BadConfig for flags of a walk from noise that are none."""
  check_seed(FLAGS.seed, "--seed")
  for name in ("steps", "batch"):
    value = FLAGS[name].value
    if not 1 <= value <= MOST_IMAGES:
      raise BadConfig(f"--{name}={value}: expected from 1 to {MOST_IMAGES:,}")
  if not math.isfinite(FLAGS.guidance):
    raise BadConfig(f"--guidance={FLAGS.guidance}: expected a number")
  choose(FLAGS.sampler, images.SAMPLERS, "--sampler")


def write_down() -> int:
  """What is said in files of sound; the exit status."""
  for name in (*OF_TEXT, "seed"):
    if FLAGS[name].present and name not in OF_SOUND:
      raise BadConfig(f"--{name} is of text, --audio of sound: leave one out")
  beams = beams_of()
  wordlist.check_flags(FLAGS)
  words = wordlist.given(FLAGS)
  for name in ("max_tokens", "batch"):
    value = FLAGS[name].value
    if not 1 <= value <= MOST:
      raise BadConfig(f"--{name}={value}: expected from 1 to {MOST:,}")
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR or --workdir=hf:FOLDER is missing")
  clips = [clip_of(path) for path in FLAGS.audio]
  if FLAGS.out:
    command.check_out(FLAGS.out)
  loaded = loaded_model(
    lambda model: transcripts.check_hears(model, "--audio", beams, words)
  )
  heard = isinstance(loaded.model, transcripts.Aligns)  # no token by token
  most = FLAGS.max_tokens if heard else most_tokens(loaded, 1)
  with jax.set_mesh(loaded.mesh):
    texts = list(
      transcripts.transcribed(
        loaded.hearing(beams, words), loaded.tokenizer, clips,
        max_tokens=most, batch=FLAGS.batch, names=FLAGS.audio,
      )
    )  # fmt: skip
  if not command.is_first():
    return 0
  lines = []
  for path, text in zip(FLAGS.audio, texts, strict=True):
    print(f"{path}: {text}")
    about = {"audio": path, "text": text}
    about |= {"model": loaded.name, "step": loaded.step}
    lines.append(json.dumps(about, ensure_ascii=False))
  if FLAGS.out:
    files.write_out(FLAGS.out, "\n".join(lines) + "\n")
  return 0


def clip_of(path: str) -> np.ndarray:
  """The samples of a file; what is odd about it is said. Raises BadData."""
  try:
    data = files.given(path, decoding.LARGEST_FILE, "--audio")
    samples, notes = decoding.decoded(data, "mix")
  except OSError as error:
    raise BadData(f"--audio={path}: {error.strerror}") from None
  except decoding.Unusable as error:
    raise BadData(f"--audio={path}: {error}") from None
  for note in notes:
    if command.is_first():
      print(f"note: {path}: {note}", file=sys.stderr)
  return samples


def draw() -> int:
  """A grid of images; the exit status."""
  for name in OF_TEXT:
    if FLAGS[name].present and name not in OF_DRAWING:
      raise BadConfig(f"--{name} is of text, --grid of images: leave one out")
  rows, columns = grid_of(FLAGS.grid)
  check_steps()
  if FLAGS.reconstruct:
    for name in OF_DRAWING:
      if FLAGS[name].present:
        raise BadConfig(
          f"--{name} draws images, --reconstruct does not: leave one out"
        )
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR is missing")
  if not FLAGS.out:
    raise BadConfig("--out=x.png is missing: the file for the grid")
  png.pillow()
  command.check_out(FLAGS.out)
  if FLAGS.reconstruct and rows % 2:
    raise BadConfig(
      f"--grid={FLAGS.grid}: each second row is made of the one above it: "
      "expected an even number of rows"
    )
  loaded = loaded_model(check_grid)
  if FLAGS.reconstruct:
    found = reconstructed(loaded, rows, columns)
  else:
    found = drawn(loaded, rows, columns)
  if command.is_first():
    files.write_out(FLAGS.out, png.png(png.grid(found, rows, columns)))
    print(
      f"{counted(rows * columns, 'image')} of step {loaded.step}: {FLAGS.out}"
    )
  return 0


def check_grid(model: nn.Module) -> None:
  """BadConfig for a model that makes no such images, or reads no such flag."""
  if FLAGS.reconstruct:
    images.check_reconstructs(model, "--reconstruct")
    return
  images.check_draws(model, "--grid")
  for name in unread(model):
    if FLAGS[name].present:
      raise BadConfig(
        f"--{name}: a model of the kind {type(model).__name__} does not read "
        "it: leave it out"
      )


def drawn(loaded: run.Loaded, rows: int, columns: int) -> np.ndarray:
  """(rows * columns, Y, X, C) uint8: images that the model draws."""
  told = loaded.told_rows(rows, labels=FLAGS.labels, prompts=FLAGS.prompt)
  with jax.set_mesh(loaded.mesh):
    sampler = loaded.sampler(
      sampler=FLAGS.sampler, steps=FLAGS.steps, guidance=FLAGS.guidance,
      seed=FLAGS.seed,
    )  # fmt: skip
    return sampler(
      np.arange(rows * columns), np.repeat(told, columns, axis=0),
      min(FLAGS.batch, rows * columns),
    )  # fmt: skip


def unread(model) -> tuple[str, ...]:
  """The flags of images that this way of drawing does not read."""
  if isinstance(model, images.DrawsByCodes):
    return ("sampler",) if model.masked else ("sampler", "steps")
  return () if model.gradual else ("sampler", "steps")


def reconstructed(loaded: run.Loaded, rows: int, columns: int) -> np.ndarray:
  """(rows * columns, Y, X, C) uint8: held-out images, and what is made of them.

  The first of those that the run was measured on, a row of each in turn.
  """
  count, found = rows // 2 * columns, []
  again = f"python -m aigc_jax.evaluate --workdir={shlex.quote(loaded.name)}"
  _, heldout = next(
    run.heldout_sets(
      loaded, otherwise="there is nothing to make again",
      ask=f"run {again} --prepare",
    )
  )  # fmt: skip
  with jax.set_mesh(loaded.mesh):
    for _, batch in data.batches(heldout, loaded.mesh, 0, heldout.batches):
      real_B = np.asarray(batch["weights"]) > 0
      found.extend(np.asarray(batch["images"])[real_B])
      if len(found) >= count:
        break
    if len(found) < count:
      raise BadConfig(
        f"--grid={FLAGS.grid} shows {counted(count, 'image')}, and the run was "
        f"measured on {len(found)} held out: take a smaller one, such as "
        f"--grid=2x{min(len(found), 8)}"
      )
    pairs = loaded.reconstructed(np.stack(found[:count]))
  in_rows = [x.reshape(-1, 1, columns, *x.shape[1:]) for x in pairs]
  return np.concatenate(in_rows, axis=1).reshape(-1, *pairs[0].shape[1:])


def grid_of(text: str) -> tuple[int, int]:
  """(rows, columns) of "4x8"."""
  found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
  if not found or int(found[1]) * int(found[2]) > MOST_IMAGES:
    raise BadConfig(
      f"--grid={text}: expected ROWSxCOLUMNS, such as 4x8, of at most "
      f"{MOST_IMAGES:,} images"
    )
  return int(found[1]), int(found[2])


def write_on() -> int:
  """Text after prompts; the exit status."""
  sampling = Sampling(
    FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p,
    FLAGS.repetition_penalty,
  )  # fmt: skip
  # Before the model is read, which may take minutes.
  sampling.check(2**31)
  beams = beams_of()
  check_seed(FLAGS.seed, "--seed")
  for name in ("max_tokens", "num_samples", "batch"):
    value = FLAGS[name].value
    if not 1 <= value <= MOST:
      raise BadConfig(f"--{name}={value}: expected from 1 to {MOST:,}")
  if "" in FLAGS.stop:
    raise BadConfig("--stop='': an empty stop string would stop at once")
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR or --workdir=hf:FOLDER is missing")
  prompts = prompts_of(FLAGS.prompt, FLAGS.prompts_file, FLAGS.chat)
  if FLAGS.out:
    command.check_out(FLAGS.out)
  loaded = loaded_model(lambda model: check_writes(model, FLAGS.workdir))
  read = reader(loaded.model, special=FLAGS.special)
  if FLAGS.chat:  # the template spells what comes before a text itself
    prompts = written_out(loaded.tokenizer, prompts)
    read = reader(loaded.model, special=True, begin=False)
  elif not FLAGS.special:
    note_special(loaded.tokenizer, prompts)
  most = most_tokens(
    loaded, max(len(read(loaded.tokenizer, prompt)) for prompt in prompts)
  )
  note_length(loaded, most)
  rows = min(FLAGS.batch, len(prompts) * FLAGS.num_samples)
  rows = max(rows, FLAGS.beams)
  check_room(loaded.model, loaded.params, most, rows, command.room())
  alone = len(prompts) * FLAGS.num_samples == 1 and not beams
  answers = FLAGS.chat or loaded.model.source
  with jax.set_mesh(loaded.mesh):
    started, engine = time.perf_counter(), None
    asked = dict(
      max_tokens=most, num_samples=FLAGS.num_samples, stops=FLAGS.stop,
      batch=FLAGS.batch, read=read,
    )  # fmt: skip
    if beams:
      search = loaded.search(beams)
      found = search_texts(search, loaded.tokenizer, prompts, **asked)
    else:
      engine = loaded.engine(sampling, seed=FLAGS.seed, group=32)
      show = None
      if alone and command.is_first():
        show = stream_of("" if answers else prompts[0])
      found = generate(
        engine, loaded.tokenizer, prompts, steps=4 if alone else 32, show=show,
        **asked,
      )  # fmt: skip
  if not command.is_first():
    return 0
  seconds = time.perf_counter() - started
  report(found, engine, seconds, most, streamed=alone, answers=answers)
  if FLAGS.out:
    write(FLAGS.out, found, loaded)
  return 0


def most_tokens(loaded: run.Loaded, prompt: int) -> int:
  """--max_tokens; where it is unsaid, no more than the model has room for.

  prompt: tokens of the longest one, of which a source takes no room.
  """
  if FLAGS["max_tokens"].present:
    return FLAGS.max_tokens
  return loaded.room(FLAGS.max_tokens, 1 if loaded.model.source else prompt)


def check_writes(model, workdir: str) -> None:
  """BadConfig for a model that writes no text after text; says what it does."""
  use = uses.use_of(model)
  if use is None:
    raise BadConfig(
      f"a model of the kind {type(model).__name__} writes, draws and says "
      "nothing. What it learnt is measured by: python -m aigc_jax.evaluate "
      f"--workdir={shlex.quote(workdir)}"
    )
  words = [*use.flags, *([f"--out={use.out}"] if use.out else ())]
  if words:
    raise BadConfig(f"this model {use.words}: add {' '.join(words)}")


def beams_of() -> Beams | None:
  """The beams that the flags ask for; what draws tokens does not go with it."""
  if not FLAGS.beams:
    if FLAGS["length_penalty"].present:
      raise BadConfig("--length_penalty is of beams: add --beams=4")
    return None
  for name in (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"
  ):  # fmt: skip
    if FLAGS[name].present:
      raise BadConfig(f"--{name} draws tokens, --beams does not: leave one out")
  if FLAGS.num_samples > FLAGS.beams:
    raise BadConfig(
      f"--num_samples={FLAGS.num_samples} of --beams={FLAGS.beams}: expected "
      "at most as many"
    )
  return Beams(FLAGS.beams, FLAGS.length_penalty).check(2**31)


def written_out(tokenizer, conversations: list) -> list[str]:
  """Conversations as the texts that the model reads."""
  template, words = chat.template_of(tokenizer)
  return chat.render(template, words, conversations)


def note_special(tokenizer, prompts: list[str]) -> None:
  """Says where a special token is spelled, and is text."""
  words = sorted(tokenizer.special_words, key=len, reverse=True)
  spelled = next((w for w in words if any(w in p for p in prompts)), None)
  if spelled and command.is_first():
    print(
      f"note: {spelled!r} in a prompt is read as text; --special reads it as "
      "the special token",
      file=sys.stderr,
    )


def check_room(model, params, max_tokens: int, rows: int, memory: int) -> None:
  """Raises BadConfig where the cache of so many tokens could never fit."""
  one = jnp.zeros((1, 1), jnp.int32)
  batch = {"encoder_tokens" if model.source else "tokens": one}
  cache = jax.eval_shape(
    lambda p: model.apply({"params": p}, batch, 1, method="begin"), params
  )
  each = rows * tree.nbytes(cache)  # of one position of all rows
  if each * max_tokens <= memory:
    return
  raise BadConfig(
    f"--max_tokens={max_tokens} of {counted(rows, 'continuation')} made "
    f"together need {each * max_tokens / 2**30:,.0f} GiB of keys and values, "
    "and there are "
    f"{memory / 2**30:,.0f}: expected at most {memory // each:,} (or a smaller "
    "--batch)"
  )


def note_length(loaded: run.Loaded, max_tokens: int) -> None:
  """Says where more is asked for than the model was trained to read."""
  trained = run.trained_length(loaded.config)
  if trained and max_tokens > trained and command.is_first():
    print(
      f"note: --max_tokens={max_tokens} goes beyond the {trained} positions "
      "that the model was trained on",
      file=sys.stderr,
    )


def stream_of(before: str):
  """Prints what stands before the first new text, and all text as it comes."""
  waiting = [before]

  def show(index: int, sample: int, text: str) -> None:
    print("".join(waiting) + text, end="", flush=True)
    waiting.clear()

  return show


def report(
  found,
  engine: Engine | None,
  seconds: float,
  most: int,
  *,
  streamed: bool,
  answers: bool,
) -> None:
  """The continuations, where not shown already, and how fast they came.

  most: tokens of each at most. answers: whether they are shown without their
  prompts.
  """
  if streamed:
    print()
    (c,) = found
    if c.finish != "length":
      empty = "" if c.text else ", before any text"
      sys.stdout.flush()
      print(
        f"note: {ENDS[c.finish]} after {len(c.tokens)} of {most} tokens{empty}",
        file=sys.stderr,
      )
  else:
    for c in found:
      worth = "" if c.score is None else f", score {c.score:.4f}"
      ended = f"({ENDS[c.finish]}{worth})"
      print(f"--- prompt {c.index}, sample {c.sample} {ended}")
      print(c.text if answers else c.prompt + c.text)
  sys.stdout.flush()
  tokens = sum(len(c.tokens) for c in found)
  speed = (
    f"{counted(tokens, 'token')} in {seconds:.2f} s: "
    f"{tokens / seconds:.1f} tokens/s"
  )
  if engine and engine.tokens:
    rate = engine.tokens / engine.seconds
    speed += f" ({rate:.1f} without reading the prompt and compiling)"
  print(speed, file=sys.stderr)


def write(out: str, found, loaded: run.Loaded) -> None:
  """One JSON line for each continuation."""
  lines = [
    json.dumps(
      {
        "prompt": c.prompt, "text": c.text, "sample": c.sample,
        "finish": c.finish, "tokens": list(c.tokens), "seed": FLAGS.seed,
        "model": loaded.name, "step": loaded.step,
      } | ({} if c.score is None else {"score": c.score}),
      ensure_ascii=False,
    )
    for c in found
  ]  # fmt: skip
  files.write_out(out, "\n".join(lines) + "\n")


if __name__ == "__main__":
  define_flags()
  command.main(main)
