"""The data a config names: training stream, held-out sets."""

from collections.abc import Mapping, Sequence

from absl import logging

from aigc_jax.data.denoising import span_counts
from aigc_jax.data.example import Example
from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.listing import check_local, check_there
from aigc_jax.data.stream import EvalSet
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import Refusal
from aigc_jax.run.settings import Config, data_of
from aigc_jax.terminal import counted

LIMITS = {"token": 1000, "example": 100}  # fewer held out are few


def check_workdir(config: Config, workdir: str) -> None:
  """Raises BadConfig for a work directory that is its own data, or a URL.

  One below a folder of text is left out when that is read.
  """
  check_local(workdir, "--workdir")
  data_of(config).check_workdir(workdir)


def check_inputs(config: Config) -> None:
  """Raises BadConfig for what no data could mend; nothing is prepared."""
  data_of(config).check_model(config["model"])


def note_inputs(config: Config) -> None:
  """Tells what goes together and is hardly meant: most ids are of no text.

  A model that is read from elsewhere has the ids that it has.
  """
  section, model = config["data"], config["model"]
  parts = model.get("parts", {})
  read = any(
    "vocab" in parts[name] for name in config["frozen"] if name in parts
  )
  if config["init_from"] or read or not section.get("tokenizer"):
    return
  made = section["tokenizer_vocab"]
  if section["tokenizer"] != "sentencepiece":
    made = load_tokenizer(section["tokenizer"]).text_vocab
  vocab, more = vocab_of(model, made), ""
  task = section.get("task") or {}
  used = made
  if task.get("kind") == "span_corruption":
    noise, mean_span = task.get("noise", 0.15), task.get("mean_span", 3.0)
    used += span_counts(section["length"], noise, mean_span)[1]
  least = -(-used // 128) * 128
  if vocab < 2 * least:
    return
  if used > made:  # sentinels are the last ids
    more = f" --config.data.task.first_sentinel={least - 1}"
  fits = all(
    model.get(key) is None or model[key] < least
    for key in ("start_token", "text_end", "blank")
  )
  logging.warning(
    "model.vocab=%d, and the tokenizer makes %d ids: %d rows of the embedding "
    "are of no text%s",
    vocab, made, vocab - used,
    f" ({flags_of(model, 'vocab', least)}{more} is enough)" if fits else "",
  )  # fmt: skip


def check_heldout_paths(config: Config) -> None:
  """Raises BadData where held-out data of one's own is not there.

  It is opened last, when the training data has been prepared.
  """
  found = [("data.validation_path", config["data"].get("validation_path"))]
  for name, entry in config["evaluate"].items():
    data = entry["data"] if isinstance(entry.get("data"), Mapping) else {}
    for i, source in enumerate(data.get("sources") or ()):
      key = f"evaluate.{name}.data.sources[{i}].path"
      found.append((key, source.get("path")))
  for key, path in found:
    if path:
      check_there(path, key)


def check_paths(config: Config) -> None:
  """Raises BadData where training data is not there, by its key."""
  section = config["data"]
  found = {"data.path": section.get("path")}
  if not section.get("path"):
    found = {
      f"data.sources[{i}].path": source.get("path")
      for i, source in enumerate(section.get("sources") or ())
    }
  for key, path in found.items():
    if path:
      check_there(path, key)


def example_of(config: Config) -> Example:
  """A piece of the data of a config, as far as it is still there."""
  find = getattr(data_of(config), "example", Example)
  try:
    return find()
  except (Refusal, OSError):
    return Example()


def open_stream(config: Config, say=print, progress=None):
  """The training data, prepared where it is missing."""
  check_paths(config)
  return data_of(config).stream(
    seed=config["seed"], model=config["model"], say=say, progress=progress
  )


def open_eval(
  config: Config,
  split: str,
  batches: int | None = None,
  *,
  tokenizer=None,
  say=print,
  **which,
):
  """A held-out set of the data of a config, prepared where it is missing.

  which: what else config.evaluate says of it, such as sources. tokenizer: of
  the run, where it is at hand.
  """
  found = data_of(config).heldout(
    split=split, model=config["model"], tokenizer=tokenizer, say=say, **which
  )
  note_few(found, say)
  return found if batches is None else found.first(batches)


def note_few(found: EvalSet, say=print) -> None:
  """Says of a set that is too small to tell two models apart how small it is.

  Of a thousand tokens a loss is known to a tenth, of a hundred examples a share
  to five percent.
  """
  tokens, examples = (found.counts.get(k) for k in ("tokens", "examples"))
  name = f"{found.views[0].name!r}: " if len(found.views) == 1 else ""
  line = few(examples, "example") if tokens is None else few(tokens)
  if line:
    say(
      f"{name}{line} (a larger --config.data.validation, or more data, says "
      "more)"
    )


def few(held_out: int | None, noun: str = "token") -> str:
  """What is said of so few, or nothing."""
  if held_out is None or held_out >= LIMITS[noun]:
    return ""
  return f"{counted(held_out, noun)} held out: what so few say is mostly chance"


def find_eval(
  config: Config,
  split: str,
  batches: int | None = None,
  *,
  tokenizer,
  fingerprints: Sequence[str],
  texts: Sequence[str] = (),
  **which,
):
  """The set that `open_eval` gave a run, or None where it is gone.

  fingerprints, texts: as the checkpoints of the run noted them, texts of what
  scores read beside the batches, if anything. Only stores below data.root are
  read, and pairs: no other source is, and nothing is written.
  """
  if texts:
    which["texts"] = texts
  return data_of(config).known(
    split=split,
    batches=batches,
    model=config["model"],
    tokenizer=tokenizer,
    fingerprints=fingerprints,
    **which,
  )
