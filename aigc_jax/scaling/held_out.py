"""Which held-out text a config asks for, however batches cut it."""

from collections.abc import Mapping

from aigc_jax import files

TEXT = ("path", "sources", "validation", "validation_path", "field")
CUT = ("length", "tokenizer", "tokenizer_vocab")  # what windows depend on


def text_of(config: Mapping, name: str) -> str | None:
  """A hash of the text, and the windows of it, that evaluate.NAME scores.

  Batches of any size that come to the same windows are the same. None where the
  config does not say which text it is. Of a name that no evaluation has: of the
  text that is trained on.
  """
  data = config["data"] if "data" in config else {}
  every = config["evaluate"] if "evaluate" in config else {}
  entry = dict(every[name]) if name in every else {}
  if not any(data.get(key) for key in ("path", "sources")):
    return None
  entry.pop("every_steps", None)
  batches = entry.pop("batches", None)
  if batches is not None and batches >= 0:
    entry["windows"] = batches * data["batch"]
    entry["cut"] = {key: data.get(key) for key in CUT}
  text = {key: data.get(key) for key in TEXT}
  return files.sha256_json([text, entry])


def texts_of(config: Mapping) -> dict[str, str]:
  """{"evaluate.NAME": the hash} of each evaluation whose text is known."""
  every = config["evaluate"] if "evaluate" in config else {}
  found = {f"evaluate.{name}": text_of(config, name) for name in every}
  return {name: text for name, text in found.items() if text is not None}
