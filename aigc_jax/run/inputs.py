"""The data a config names: training stream, held-out sets, their stores."""

import os
from collections.abc import Sequence

from aigc_jax import data, files
from aigc_jax.data.documents import ALL
from aigc_jax.data.listing import check_local
from aigc_jax.data.tasks import make_task
from aigc_jax.errors import BadConfig
from aigc_jax.run.settings import Config


def sources_of(config: Config) -> list[dict]:
  """The sources; `data.path` is short for one source of text."""
  d = config["data"]
  if d["path"]:
    source = dict(kind="text", path=d["path"], split="train")
    return [source | dict(field=d["field"], weight=1.0)]
  if not d["sources"]:
    raise BadConfig(
      "no data: set --config.data.path=PATH (a file, folder or glob), or "
      "data.sources in the config"
    )
  return [dict(s) for s in d["sources"]]


def data_arguments(config: Config) -> dict:
  """What says which stores a config trains on.

  Nothing of them is held out where there is held-out text of one's own.
  """
  d = config["data"]
  share = 0.0 if d["validation_path"] else d["validation"]
  names = ("tokenizer", "tokenizer_vocab", "root")
  return {"sources": sources_of(config), "validation": share} | {
    name: d[name] for name in names
  }


def heldout_arguments(config: Config, split: str) -> dict:
  """What says which stores `split` of a config is: sources and split.

  `data.validation_path` is the validation split, all of it.
  """
  d = config["data"]
  if split != "validation" or not d["validation_path"]:
    return {"sources": sources_of(config), "split": split}
  source = dict(kind="text", path=d["validation_path"], split=ALL)
  source |= dict(field=d["field"], weight=1.0)
  return {"sources": [source], "split": ALL}


def tokenizer_of(config: Config, say=print):
  """The tokenizer of a config, trained where it is missing."""
  return data.find_tokenizer(**data_arguments(config), say=say)


def holds_nothing_out(config: Config) -> bool:
  """Whether there is no validation split, as data.validation=0 asks for."""
  d = config["data"]
  if d["validation"] or d["validation_path"]:
    return False
  return all(source["kind"] == "text" for source in sources_of(config))


def check_workdir(config: Config, workdir: str) -> None:
  """Raises BadConfig for a work directory that is its own data, or a URL.

  One below a folder of text is left out when that is read.
  """
  check_local(workdir, "--workdir")
  place = os.path.realpath(files.expanded(workdir))
  for source in sources_of(config):
    path = source["path"] if source["kind"] == "text" else ""
    if path and os.path.realpath(files.expanded(path)) == place:
      raise BadConfig(
        f"--workdir={workdir} is the folder of the text itself: the run would "
        f"train on what it writes; use --workdir={os.path.join(workdir, 'run')}"
      )


def check_inputs(config: Config) -> None:
  """Raises BadConfig for what no data could mend; nothing is prepared."""
  make_task(config["data"]["task"])
  name, vocab = config["data"]["tokenizer"], config["model"]["vocab"]
  needed = config["data"]["tokenizer_vocab"]
  if name != "sentencepiece":
    needed = data.load_tokenizer(name).text_vocab
  if vocab < needed:
    raise BadConfig(
      f"model.vocab={vocab}, but the tokenizer ({name}) makes {needed} ids: "
      f"--config.model.vocab={needed}"
    )


def open_stream(config: Config, say=print, progress=None):
  """The training data, prepared where it is missing."""
  d = config["data"]
  names = ("task", "batch", "length", "segments", "shuffle", "skip_steps")
  stream = data.build(
    **data_arguments(config),
    **{name: d[name] for name in names},
    seed=config["seed"],
    say=say,
    progress=progress,
  )
  data.check_vocab(stream, config["model"]["vocab"])
  return stream


def open_eval(
  config: Config,
  split: str,
  batches: int | None = None,
  *,
  tokenizer=None,
  sources: list[dict] | None = None,
  say=print,
):
  """A held-out set of the sources of a config, or of others.

  tokenizer: of the run, where it is at hand; other sources need it, for a
  tokenizer trained on those of the config knows nothing of them. What is
  missing is prepared.
  """
  d = config["data"]
  arguments = data_arguments(config)
  if tokenizer is None:
    tokenizer = tokenizer_of(config, say)
  if sources is None:
    arguments |= heldout_arguments(config, split)
  else:
    arguments |= {"sources": [dict(s) for s in sources], "split": split}
  arguments["tokenizer"] = tokenizer
  names = ("task", "batch", "length", "segments")
  found = data.build_eval(
    **arguments,
    **{name: d[name] for name in names},
    say=say,
  )
  data.check_vocab(found, config["model"]["vocab"])
  return found if batches is None else found.first(batches)


def find_eval(
  config: Config,
  split: str,
  batches: int | None = None,
  *,
  tokenizer,
  fingerprints: Sequence[str],
  sources: list[dict] | None = None,
):
  """The set that `open_eval` gave a run, or None where it is gone.

  fingerprints: as the checkpoints of the run noted them. Only stores below
  data.root are read: no source is, and nothing is written.
  """
  d = config["data"]
  if sources is None:
    arguments = heldout_arguments(config, split)
    sources, split = arguments["sources"], arguments["split"]
  names = ("root", "task", "batch", "length", "segments")
  found = data.find_eval(
    fingerprints,
    splits=[split] * len(sources),
    batches=batches,
    tokenizer=tokenizer,
    **{name: d[name] for name in names},
  )
  if found is not None:
    data.check_vocab(found, config["model"]["vocab"])
  return found


def prepared_data(config: Config) -> list[dict] | None:
  """The manifests of the training stores, or None where one is missing."""
  return data.prepared(**data_arguments(config))
