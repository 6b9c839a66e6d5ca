"""The data a config names: training stream, held-out sets, their stores."""

from aigc_jax import data
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
  """What says which stores a config reads."""
  names = ("tokenizer", "tokenizer_vocab", "validation", "root")
  return {"sources": sources_of(config)} | {
    name: config["data"][name] for name in names
  }


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
  batches: int = -1,
  *,
  tokenizer=None,
  sources: list[dict] | None = None,
  say=print,
):
  """A held-out set of the sources of a config, or of others.

  tokenizer: of the run, where it is at hand; other sources need it, for a
  tokenizer trained on those of the config knows nothing of them.
  """
  d = config["data"]
  arguments = data_arguments(config)
  if tokenizer is not None:
    arguments["tokenizer"] = tokenizer
  if sources is not None:
    arguments["sources"] = [dict(s) for s in sources]
  names = ("task", "batch", "length", "segments")
  found = data.build_eval(
    **arguments,
    **{name: d[name] for name in names},
    split=split,
    say=say,
  )
  data.check_vocab(found, config["model"]["vocab"])
  return found.first(batches)


def prepared_data(config: Config) -> list[dict] | None:
  """The manifests of the training stores, or None where one is missing."""
  return data.prepared(**data_arguments(config))
