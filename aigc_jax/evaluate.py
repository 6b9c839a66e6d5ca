"""Evaluates a model: held-out loss, any text, tasks.

  python -m aigc_jax.evaluate --workdir=DIR
  python -m aigc_jax.evaluate --workdir=hf:FOLDER --text=book.txt --text=x.py
  python -m aigc_jax.evaluate --workdir=DIR --tasks=piqa=piqa.jsonl,mine=q.jsonl
  python -m aigc_jax.evaluate --workdir=DIR --weights=average --features=JUDGE

Without tasks and texts: the run's own held-out sets. A task is NAME=FILE.jsonl;
its format (LAMBADA, HellaSwag, ARC, PIQA, BLiMP, choices, references) is known
by the keys of its records, see evaluators/formats.py. Of held-out pairs the
targets are also written, with --beams=4 by beam search, and compared by BLEU,
chrF, ROUGE and METEOR; of held-out utterances what is heard is compared by word
and character errors. Images that a model draws are compared with held-out
ones by FID, KID, precision and recall, of the features of another run, JUDGE,
that knows images by their labels. With --recogniser=DIR, a run that hears, a
model that speaks says held-out texts, and what is heard of them is compared by
word and character errors. Scores come as a table and as JSON, each with
its standard error and number of items.
"""

import dataclasses
import functools
import gzip
import lzma
import math
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigc_jax import command, files, run, terminal
from aigc_jax.data import EvalSet
from aigc_jax.data.pairs import Pairs, texts_fingerprint
from aigc_jax.data.sound import Sound
from aigc_jax.errors import BadConfig, BadData, choose
from aigc_jax.evaluators import choices, formats, text_scores
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.evaluators.drawn import Comparison
from aigc_jax.evaluators.likelihood import LENGTH, Scorer
from aigc_jax.evaluators.loss import Loss, results
from aigc_jax.evaluators.spoken import Spoken
from aigc_jax.evaluators.word_errors import word_errors
from aigc_jax.run.score_files import default_out, save
from aigc_jax.sampling import transcripts, wordlist
from aigc_jax.sampling.beam import Beams, search_texts
from aigc_jax.sampling.decodes import Decodes
from aigc_jax.sampling.images import SAMPLERS, check_draws
from aigc_jax.sampling.logits import Sampling, check_seed
from aigc_jax.sampling.speech import check_speaks
from aigc_jax.sampling.text import generate
from aigc_jax.sampling.words import Known

FLAGS = flags.FLAGS
Scores = dict[str, Estimate]
LARGEST = 2**32  # bytes of a text
MOST_STEPS = 10_000  # from noise to an image or a sound
# The flags that name who judges what a model makes.
JUDGES = {
  "features": "a run that knows images by their labels",
  "recogniser": "a run that writes down speech",
}


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("workdir", "", "folder of the run, or hf:FOLDER")
  flags.DEFINE_integer("step", None, "checkpoint to use; the last by default")
  flags.DEFINE_string("weights", "raw", "or average, where a run keeps one")
  flags.DEFINE_list("tasks", [], "NAME=FILE.jsonl,...")
  flags.DEFINE_multi_string("text", [], "text file to read; repeatable")
  flags.DEFINE_bool(
    "prepare", False, "make the run's held-out stores where they are missing"
  )
  flags.DEFINE_string("out", "", "JSON file; below --workdir by default")
  flags.DEFINE_integer("batch", 8, "rows scored together")
  flags.DEFINE_integer("length", 0, "tokens read at once; 0 as trained")
  flags.DEFINE_integer("max_tokens", 64, "written at most, for references")
  flags.DEFINE_integer("beams", 0, "of what is written; 0 takes the likeliest")
  flags.DEFINE_float("length_penalty", 1.0, "of beams: more favours long ones")
  wordlist.define_flags()
  flags.DEFINE_string(
    "features", "", "run or hf:FOLDER by which drawn images are compared"
  )
  flags.DEFINE_string(
    "recogniser", "", "run or hf:FOLDER that writes down what is spoken"
  )
  flags.DEFINE_integer("utterances", 0, "spoken at most; 0 is all held out")
  flags.DEFINE_integer("images", 0, "drawn at most; 0 is as many as held out")
  flags.DEFINE_integer("steps", 50, "of images and speech: steps from noise")
  flags.DEFINE_string(
    "sampler", "heun", "of images and speech: euler, heun or ddim"
  )
  flags.DEFINE_float(
    "guidance", 1.0, "towards labels, or what is said; 1 is off"
  )
  flags.DEFINE_integer("seed", 0, "of the noise of images and speech")
  flags.DEFINE_multi_string("stop", ["\n"], "where writing stops; repeatable")


def main() -> int:
  """The command; the exit status."""
  if not FLAGS.workdir:
    raise BadConfig("--workdir=DIR or --workdir=hf:FOLDER is missing")
  for name, least in (
    ("batch", 1), ("length", 0), ("max_tokens", 1), ("beams", 0),
    ("images", 0), ("utterances", 0), ("steps", 1),
  ):  # fmt: skip
    if FLAGS[name].value < least:
      raise BadConfig(f"--{name}={FLAGS[name].value}: expected {least} or more")
  check_features_flags()
  wordlist.check_flags(FLAGS)
  if FLAGS.out:
    command.check_out(FLAGS.out, make=True)
  texts = {path: text_of(path) for path in FLAGS.text}
  tasks = {name: formats.read(path) for name, path in tasks_of(FLAGS.tasks)}
  loaded = run.load(
    FLAGS.workdir, step=FLAGS.step, weights=FLAGS.weights, remat="none",
    suits=lambda model, config: check_serves(model, config, texts, tasks),
  )  # fmt: skip
  out = FLAGS.out or default_out(loaded, FLAGS.weights)
  if out:
    command.check_out(out, make=True)
  scores: dict[str, Scores] = {}
  length = FLAGS.length or loaded.length or LENGTH
  if texts or tasks:
    check_room(
      "--batch and --length (that of the run by default)",
      (FLAGS.batch, length), width_of(loaded), command.room(),
    )  # fmt: skip
  with jax.set_mesh(loaded.mesh):
    scorer = Scorer(
      loaded.model, loaded.params, loaded.tokenizer,
      length=length, batch=FLAGS.batch,
    )  # fmt: skip
    for path, text in texts.items():
      scores[path] = score_text(scorer, text)
    for name, (form, items) in tasks.items():
      scores[name] = score_task(loaded, scorer, form, items)
    if FLAGS.features:
      scores = drawn(loaded)
    elif FLAGS.recogniser:
      scores = spoken(loaded)
    elif not texts and not tasks:
      scores = heldout(loaded)
  if out:
    _ = loaded.digest  # which is of all processes
  if command.is_first():
    if out:
      save(files.expanded(out), loaded, scores, FLAGS.weights)
    show(Console(file=terminal.plain(sys.stdout)), loaded, scores)
  return 0


def check_serves(model, config: Mapping, texts, tasks) -> None:
  """BadConfig for what cannot be measured as asked, before it is read."""
  if not texts and not tasks and "evaluate" not in config:
    raise BadConfig(
      f"{FLAGS.workdir} has no held-out data of its own: name some with "
      "--text=FILE or --tasks=NAME=FILE.jsonl"
    )
  check_flags_read(model, texts, tasks)
  if texts or any(
    formats.FORMATS[form].scores != "references" for form, _ in tasks.values()
  ):
    check_likelihood(model)
  if FLAGS.features:
    check_draws(model, f"--features={FLAGS.features}")
  if FLAGS.recogniser:
    check_speaks(model, f"--recogniser={FLAGS.recogniser}")
  command.tell_reading(FLAGS.workdir)


def check_flags_read(model, texts, tasks) -> None:
  """BadConfig for a flag that nothing reads of what is to be measured."""
  forms = [formats.FORMATS[form] for form, _ in tasks.values()]
  writes = any(form.scores == "references" for form in forms)
  unread = {}
  if texts or tasks:
    unread["prepare"] = "the run's own held-out sets"
  else:
    unread["stop"] = "--tasks with references"
    unread["length"] = (
      "--text and --tasks (the run's own held-out sets are read as its config "
      "has them)"
    )
    hears = transcripts.transcribes(model)
    writes = hears or (isinstance(model, Decodes) and model.source)
    writes = writes and not (FLAGS.features or FLAGS.recogniser)
    if not writes:
      unread["batch"] = f"{unread['length']}, and of what is written"
  if not writes:
    written = ("beams", "length_penalty", "max_tokens", "stop")
    unread |= dict.fromkeys(written, "what is written, and nothing is")
  if texts or tasks or not transcripts.transcribes(model):
    heard = dict.fromkeys(wordlist.FLAGS, "held-out sound that is written down")
    unread = heard | unread
  if not FLAGS.beams:
    unread["length_penalty"] = "--beams"
  command.check_read(unread)


def check_likelihood(model) -> None:
  """BadConfig unless a model says how likely a text is by itself."""
  if not isinstance(model, Decodes) or model.source:
    raise BadConfig(
      f"a model of the kind {type(model).__name__} does not say how likely a "
      "text is by itself: leave --text and --tasks out, but for tasks with "
      "references where it writes targets"
    )


def text_of(path: str) -> str:
  """A text file, byte for byte. Raises BadData."""
  text = files.given_text(path, LARGEST, "--text")
  if not text:
    raise BadData(f"--text={path}: the file is empty")
  return text


def tasks_of(given: list[str]) -> list[tuple[str, str]]:
  """[(name, file)] of --tasks."""
  pairs = [task.partition("=") for task in given]
  for name, _, path in pairs:
    if not name or not path:
      raise BadConfig(f"--tasks={name}: expected NAME=FILE.jsonl,...")
  names = [name for name, _, _ in pairs]
  if len(set(names)) < len(names):
    raise BadConfig(f"--tasks: two tasks have one name ({', '.join(names)})")
  return [(name, path) for name, _, path in pairs]


def score_text(scorer: Scorer, text: str) -> Scores:
  """Loss, perplexity and bits per byte of a text, beside gzip and xz."""
  found = scorer.rolling(text)
  data = text.encode()
  if not found.tokens:
    raise BadData("the text is nothing to the tokenizer")
  values = results(-found.logprob, found.tokens, len(data)) | {
    "gzip_bits_per_byte": 8 * len(gzip.compress(data, 9, mtime=0)) / len(data),
    "xz_bits_per_byte": 8 * len(lzma.compress(data, preset=9)) / len(data),
  }
  return exact(values, found.tokens)


def exact(values: dict[str, float], items: int, told: str = "") -> Scores:
  """Values that are of all there is: they have no sampling error."""
  return {
    k: Estimate(float(v), math.nan, items, told) for k, v in values.items()
  }


def coupled(objective: functools.partial, eval_set: EvalSet) -> str:
  """By how many rows a score is where they depend on each other, or ""."""
  why = getattr(objective.func, "couples_rows", "")
  rows, batch = len(eval_set), eval_set.batch
  last = f", {rows % batch} at the end" * (rows > batch and rows % batch > 0)
  return why and f"{why}: {min(rows, batch)} at a time{last}"


def score_task(loaded: run.Loaded, scorer: Scorer, form: str, items) -> Scores:
  """The scores of one task."""
  kind = formats.FORMATS[form].scores
  if kind != "references":
    return choices.evaluate(scorer, items, kind)
  return score_written(
    loaded, [item.prompt for item in items],
    [item.references for item in items], FLAGS.max_tokens, stops=FLAGS.stop,
    keep=max(scorer.length - FLAGS.max_tokens, 1),
  )  # fmt: skip


def score_written(
  loaded: run.Loaded, prompts, references, max_tokens: int, *, stops, keep=None
) -> Scores:
  """The scores of what the model writes, by beam search or the likeliest."""
  asked = dict(
    max_tokens=max_tokens, num_samples=1, stops=stops, batch=FLAGS.batch
  )
  if FLAGS.beams:
    search = loaded.search(Beams(FLAGS.beams, FLAGS.length_penalty))
    written = search_texts(search, loaded.tokenizer, prompts, **asked)
  else:
    engine = loaded.engine(Sampling(), seed=0, group=32)
    written = generate(
      engine, loaded.tokenizer, prompts, steps=16, keep=keep, **asked
    )
  found, lacking = text_scores.all_scores([c.text for c in written], references)
  for reason in lacking:
    print(f"note: {reason}", file=sys.stderr)
  return by_search(found)


def by_search(found: Scores, words: Known | None = None) -> Scores:
  """The same, signed with what texts were searched by, where they were.

  Scores without that are of the likeliest text, token by token.
  """
  if not FLAGS.beams:
    return found
  how = f"beams={FLAGS.beams}, length_penalty={FLAGS.length_penalty}"
  if words is not None:
    print_ = files.sha256_json(words.texts)[:12]
    how = f"beams={FLAGS.beams}, words={print_}, "
    how += f"words_weight={words.weight}, words_reward={words.reward}"
  return {
    key: dataclasses.replace(
      e, signature=f"{e.signature}; {how}" if e.signature else how
    )
    for key, e in found.items()
  }


def width_of(loaded: run.Loaded) -> int:
  """Numbers that stand for a token inside of the model; at least 1."""
  model = loaded.config["model"]
  return max(1, model["dim"]) if "dim" in model else 1


def check_room(
  what: str, shape: Sequence[int], width: int, memory: int
) -> None:
  """Raises BadConfig where one batch of this shape could never fit.

  shape: of the largest array of ids, (rows, tokens). Counted is the least that
  it takes: the ids themselves, and the stream of activations once.
  """
  needed = math.prod(shape) * 4 * (1 + width)
  if needed > memory:
    sizes = " x ".join(f"{n:,}" for n in shape)
    raise BadConfig(
      f"{what}: a batch of {sizes} takes {needed / 2**30:,.0f} GiB at the "
      f"least, and there are {memory / 2**30:,.0f}: choose smaller ones"
    )


def check_batch(loaded: run.Loaded, memory: int) -> None:
  """`check_room` of the batch that the run's config says."""
  found = run.data_of(loaded.config).spec.values()
  for array in found:
    ids = np.issubdtype(array.dtype, np.integer) and len(array.shape) == 2
    ids = ids and "." not in array.letters  # or it is sound, a few samples wide
    check_room(
      f"{loaded.name}/config.json: data", array.shape,
      width_of(loaded) if ids else 1, memory,
    )  # fmt: skip


def heldout(loaded: run.Loaded) -> dict[str, Scores]:
  """Each held-out set of the run's config."""
  config, found = loaded.config, {}
  run.check_data(config)
  check_batch(loaded, command.room())
  objective = run.objective_of(config)
  score = run.scorer(loaded.model, objective)
  kinds = {name: e["kind"] for name, e in run.evaluations(config).items()}
  embedded = [name for name, kind in kinds.items() if kind in run.EMBEDDED]
  alone = embedded and "loss" not in kinds.values()
  for name, eval_set in () if alone else heldout_sets(loaded):
    loss = Loss(score, eval_set, loaded.mesh, name=name)
    items = eval_set.targets or len(eval_set)
    values = loss.measure(loaded.params, loaded.fixed)
    found[name] = exact(values, items, coupled(objective, eval_set))
    hears = transcripts.transcribes(loaded.model)
    if hears and isinstance(run.data_of(config), Sound):
      found[name] |= score_sound(loaded, eval_set)
    elif isinstance(loaded.model, Decodes) and loaded.model.source:
      which = config["evaluate"][name]["data"]
      found[name] |= score_pairs(loaded, which, eval_set.texts_fingerprint)
  prints = run.heldout_prints(loaded.name, loaded.step) if embedded else {}
  for name in embedded:
    entry = config["evaluate"][name]
    run.check_evaluators(config | {"evaluate": {name: entry}}, prepared=True)
    found[name] = score_embedded(loaded, name, entry, prints.get(name, ()))
  return found


def score_embedded(loaded: run.Loaded, name: str, entry, prints) -> Scores:
  """Recall, or labels told by texts, of a model that embeds both."""
  config, tokenizer = loaded.config, loaded.tokenizer
  eval_set = run.known_embedded(config, entry, tokenizer, prints)
  if eval_set is None and FLAGS.prepare:
    eval_set = run.open_embedded(config, entry, tokenizer, print)
  if eval_set is None:
    raise run.lost(name, config)
  evaluator = run.embedded_evaluator(
    config, loaded.model, loaded.mesh, name, entry, eval_set, tokenizer
  )
  found = evaluator.measure(loaded.params, loaded.fixed)
  return exact(found, len(eval_set))


def heldout_sets(loaded: run.Loaded) -> Iterator[tuple[str, EvalSet]]:
  """(name, set) of each that the config holds out; see run/measured.py."""
  return run.heldout_sets(
    loaded, prepare=FLAGS.prepare,
    otherwise="name data with --text=FILE or --tasks=NAME=FILE.jsonl",
  )  # fmt: skip


def drawn(loaded: run.Loaded) -> dict[str, Scores]:
  """Drawn images beside each held-out set, by the features of another model.

  Beside those stand the scores of as many images that the model was trained
  on: what one would reach that draws no worse than they are.
  """
  config = loaded.config
  run.check_data(config)
  sampler = loaded.sampler(
    sampler=FLAGS.sampler, steps=FLAGS.steps, guidance=FLAGS.guidance,
    seed=FLAGS.seed,
  )  # fmt: skip
  features = run.load(FLAGS.features, remat="none").features()
  # Other features, or images drawn otherwise, are other scores.
  how = f"features={features.name} {features.fingerprint[:12]}, "
  how += ", ".join(
    f"{flag}={FLAGS[flag].value}"
    for flag in ("weights", "sampler", "steps", "guidance", "seed")
  )
  pixels = {key: config["data"][key] for key in ("mean", "std")}
  stream = run.provenance_in(loaded.name).get("data_fingerprint", "")
  seen = run.data_of(config).seen(stream, loaded.tokenizer)
  found = {}
  for name, held in heldout_sets(loaded):
    against = Comparison(features, held, **pixels, most=FLAGS.images or None)
    scores = against.scores(against.draw(sampler))
    if seen is not None:
      images, _ = against.images(seen)
      scores |= against.scores(images, "training_")
    found[f"{name}, drawn"] = {
      key: dataclasses.replace(
        e, signature=how + f"; {e.signature}" * bool(e.signature)
      )
      for key, e in scores.items()
    }
  if seen is None:
    print(
      "note: the store of the training images is gone: there is no number of "
      "real images beside other real ones", file=sys.stderr,
    )  # fmt: skip
  return found


def spoken(loaded: run.Loaded) -> dict[str, Scores]:
  """What a recogniser hears of each held-out set that the model says anew."""
  config = loaded.config
  run.check_data(config)
  synthesiser = loaded.synthesiser(
    sampler=FLAGS.sampler, steps=FLAGS.steps, guidance=FLAGS.guidance,
    seed=FLAGS.seed,
  )  # fmt: skip
  judge = run.load(FLAGS.recogniser, remat="none").recogniser()
  found = {}
  for name, held in heldout_sets(loaded):
    said = run.said_of(held, config, FLAGS.utterances or None)
    against = Spoken(said, judge, loaded.model.bins)
    found[f"{name}, spoken"] = against.scores(synthesiser)
  return found


def check_features_flags() -> None:
  """BadConfig for flags of what is drawn or spoken without a judge of it."""
  judges = [name for name in ("features", "recogniser") if FLAGS[name].value]
  if len(judges) == 2:
    raise BadConfig(
      "--features is of images, --recogniser of speech: leave one of them out"
    )
  for judge in judges:
    for name in ("tasks", "text", "beams", "length"):
      if FLAGS[name].present:
        raise BadConfig(
          f"--{name} is of text, and --{judge} is not: leave one of them out"
        )
    choose(FLAGS.sampler, SAMPLERS, "--sampler")
    check_seed(FLAGS.seed, "--seed")
    if not math.isfinite(FLAGS.guidance):
      raise BadConfig(f"--guidance={FLAGS.guidance}: expected a number")
    if FLAGS.steps > MOST_STEPS:
      raise BadConfig(
        f"--steps={FLAGS.steps}: expected from 1 to {MOST_STEPS:,}"
      )
  for name, wanted in (
    *dict.fromkeys(("steps", "sampler", "guidance", "seed"), JUDGES).items(),
    ("images", ("features",)), ("utterances", ("recogniser",)),
  ):  # fmt: skip
    if FLAGS[name].present and not set(judges) & set(wanted):
      ways = " or ".join(f"--{judge}=DIR, {JUDGES[judge]}" for judge in wanted)
      raise BadConfig(f"--{name} is of what a model makes: add {ways}")


def score_pairs(loaded: run.Loaded, which: dict, texts: str) -> Scores:
  """The scores of the targets that the model writes for held-out sources.

  Nothing where the data has no pairs. Every pair counts, however long. Raises
  BadData where they are not those of this texts_fingerprint any more.
  """
  data = run.data_of(loaded.config)
  if not isinstance(data, Pairs):
    return {}
  pairs = data.texts(**which)
  if texts_fingerprint(pairs) != texts:
    raise BadData("the held-out pairs changed while they were read; run again")
  most = FLAGS.max_tokens
  if not FLAGS["max_tokens"].present:
    most = loaded.most_written(data.target_length)
  return score_written(
    loaded, [source for source, _ in pairs], [[target] for _, target in pairs],
    most, stops=(),
  )  # fmt: skip


def score_sound(loaded: run.Loaded, eval_set: EvalSet) -> Scores:
  """Word and character errors of what is heard in a held-out set.

  Whatever its batches: all utterances that fit a row count, so does each alike.
  """
  beams, words = None, wordlist.given(FLAGS)
  if FLAGS.beams:
    beams = Beams(FLAGS.beams, FLAGS.length_penalty)
  said = [
    view.utterance(i) for view in eval_set.views for i in range(len(view))
  ]
  said = said[: len(eval_set)]
  most = loaded.most_written(run.data_of(loaded.config).target_length)
  texts = transcripts.transcribed(
    loaded.hearing(beams, words), loaded.tokenizer,
    (clip for clip, _ in said), max_tokens=most, batch=FLAGS.batch,
  )  # fmt: skip
  found = word_errors(list(texts), [text for _, text in said])
  return by_search(found, words)


def show(
  screen: Console, loaded: run.Loaded, scores: dict[str, Scores]
) -> None:
  """The table, and below it each signature as a whole, for one to copy."""
  screen.print(table_of(loaded, scores))
  for line in signatures(scores):
    screen.print(_text(line), soft_wrap=True)


def table_of(loaded: run.Loaded, scores: dict[str, Scores]) -> Table:
  """All scores, a row each."""
  table = Table(title=_text(f"{loaded.name}, step {loaded.step}"))
  known = any(
    not math.isnan(e.error) for some in scores.values() for e in some.values()
  )
  names = ("set", "score", "value", *["± error"] * known, "items")
  for name in names:
    justify = "left" if name in ("set", "score") else "right"
    table.add_column(name, justify=justify, overflow="fold")
  for name, values in scores.items():
    for score, e in values.items():
      error = "" if math.isnan(e.error) else terminal.score(e.error)
      table.add_row(
        _text(name),
        _text(score),
        terminal.score(e.value),
        *[error] * known,
        f"{e.items:,}",
      )
      name = ""
  return table


def signatures(scores: dict[str, Scores]) -> list[str]:
  """How scores were computed, a line for those that were computed alike."""
  signed: dict[str, list[str]] = {}
  for values in scores.values():
    for score, e in values.items():
      if e.signature and score not in signed.setdefault(e.signature, []):
        signed[e.signature].append(score)
  return [f"{', '.join(some)}: {how}" for how, some in signed.items()]


def _text(text: str) -> Text:
  """For rich: brackets are brackets, and nothing moves the cursor."""
  return Text(terminal.shown(text))


if __name__ == "__main__":
  define_flags()
  command.main(main)
