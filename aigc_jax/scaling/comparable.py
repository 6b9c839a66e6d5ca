"""Which runs may be held against each other, and why others may not."""

import json
from collections.abc import Mapping, Sequence

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import held_out
from aigc_jax.scaling.runs import Record

# Bits per byte of compressors: equal ones are of equal text.
YARDSTICKS = ("gzip_bits_per_byte", "xz_bits_per_byte")
# Of a token; they mean nothing between tokenizers.
PER_TOKEN = ("loss", "nll", "perplexity", "accuracy")
PER_BYTE = "bits_per_byte"
# Words of the names of which more is better, and of which less is. Of others
# (a scale, a norm, what a player of a game loses) nothing says which.
HIGHER = (
  "accuracy", "acc", "bleu", "rouge", "chrf", "f1", "exact_match", "meteor",
  "precision", "recall", "top1", "top5",
)  # fmt: skip
LOWER = (
  "loss", "nll", "perplexity", "bits", "mse", "mae", "mel", "db", "wer", "cer",
  "fid", "kid", "error", "errors", "bound", "commitment", "codebook", "soft",
  "cosine", "duration", "too_short", "off_grid",
)  # fmt: skip
# Shares of images that are told their text, and of texts their image.
TOLD = ("image_to_text", "text_to_image")
CONTRASTIVE = "contrastive"  # the objective whose rows are each other's rivals


# What of an objective changes how it is computed, not what it is.
FORM = ("chunk", "logits")


def unlike_losses(runs: Sequence[Record], metrics: Sequence[str]) -> str:
  """What is to be said where training losses are of unlike objectives, or "".

  A distilled run's is a sum of what the teacher says and of the tokens, which
  no other run's is, however alike the two are called.
  """
  named = [m for m in metrics if m in ("train/loss", "train/last_loss")]
  kinds: dict[str, list] = {}
  for r in runs:
    said = {k: v for k, v in _objective(r).items() if k not in FORM}
    kinds.setdefault(json.dumps(said, sort_keys=True), []).append(r)
  if not named or len(kinds) < 2:
    return ""
  each = (f"{_names(some)}: {_told(kind)}" for kind, some in kinds.items())
  alike = all("train/nll" in r.metrics for r in runs)
  way = "train/nll is" if alike else "eval/heldout/loss is, where that is nll"
  return (
    f"{named[0]} is not one quantity in these runs, whose objectives differ "
    f"({'; '.join(each)}): {way}"
  )


def _objective(r: Record) -> Mapping:
  """What a run was trained for; of a file of results as far as that says it."""
  ours = r.config["objective"] if "objective" in r.config else None
  if isinstance(ours, Mapping):
    return ours
  said = {k: v for k, v in r.values.items() if k.startswith("objective.")}
  own = {k.removeprefix("objective."): v for k, v in said.items()}
  about = r.about.get("objective")
  return about if isinstance(about, Mapping) else own


def _told(objective: str) -> str:
  """An objective in a few words, such as "distill, soft=5.0, hard=2.0"."""
  section = json.loads(objective)
  kind = section.pop("kind", "the sweep's own")
  return ", ".join([str(kind), *(f"{k}={v}" for k, v in section.items())])


def higher_is_better(metric: str) -> bool | None:
  """Whether a larger value of the metric is the better one; None: unknown."""
  part = metric.partition("/")[0]
  last = metric.rpartition("/")[2].lower()
  words = {last, *last.split("_")}
  # rouge1 and rougeL are kinds of rouge
  if part == "speed" or words & {*HIGHER, *TOLD} or last.startswith("rouge"):
    return True
  # In training that of the codes of a codebook, and not of a text.
  of_codes = part == "train" and last == "perplexity"
  return False if words & {*LOWER} and not of_codes else None


def fair_metric(runs: Sequence[Record], metric: str) -> tuple[str, list[str]]:
  """(the metric by which these runs may be compared, what is to be said).

  Losses per token of different tokenizers become bits per byte where the text
  is the same. Raises BadConfig, with the reason and a way out, where no number
  of theirs may be averaged.
  """
  part, _, rest = metric.partition("/")
  _check_rivals(runs, metric)
  if part != "eval":
    notes = _same_training_data(runs, metric)
    unlike = unlike_losses(runs, [metric])
    return metric, notes + [unlike] * bool(unlike)
  name = rest.rpartition("/")[0]
  notes = []
  prints = _prints(runs, name)
  for judge in ("features", "recogniser"):
    judges = _prints(runs, f"{name}.{judge}")
    said = _prints(runs, f"{name}.{judge}.config")
    if len(judges) == 1 and len({*said} - {None}) > 1:
      judges = said
    if len(judges) > 1:
      by = (f"{_short(p)}: {_names(some)}" for p, some in judges.items())
      raise BadConfig(
        f"{metric} is by different networks, {'; '.join(by)}: measure all by "
        f"one, with python -m aigc_jax.evaluate --{judge}=DIR"
      )
  texts = _prints(runs, f"{name}.texts")
  if len(prints) == 1 and len({*texts} - {None}) > 1:
    if metric.endswith(f"/{PER_BYTE}"):
      by = (f"{_short(p)}: {_names(some)}" for p, some in texts.items())
      raise BadConfig(
        f"{metric} is of texts that the tokenizer makes the same ids of and "
        f"that are not the same ({'; '.join(by)}): compare eval/{name}/loss, "
        "or measure all on one text (python -m aigc_jax.evaluate --text=FILE)"
      )
  tokenizers = _values(runs, "tokenizer_fingerprint")
  if len(prints) == 1 and len(tokenizers) <= 1:
    if None in prints or None in tokenizers:
      notes.append("no run.json says which data was held out: taken as shared")
    return metric, notes
  if len(prints) > 1:
    notes.append(_same_text(runs, name, metric, prints))
  if len(tokenizers) > 1 and rest.rpartition("/")[2] in PER_TOKEN:
    return _per_byte(runs, name, metric, notes)
  return metric, notes


def _check_rivals(runs: Sequence[Record], metric: str) -> None:
  """Raises BadConfig where pairs are told from more others in one run.

  The loss of CLIP goes as the logarithm of the batch, held-out pairs too.
  """
  if metric.rpartition("/")[2] not in ("loss", "last_loss", *TOLD):
    return
  sizes: dict[int, list] = {}
  for r in runs:
    if r.objective == CONTRASTIVE:
      sizes.setdefault(r.config["data"]["batch"], []).append(r)
  if len(sizes) > 1:
    each = (f"{n}: {_names(some)}" for n, some in sorted(sizes.items()))
    raise BadConfig(
      f"{metric} tells pairs from all others of a batch, and data.batch is not "
      f"the same ({'; '.join(each)}): compare what does not depend on it, as "
      "evaluate.NAME.kind='recall' or 'zero_shot' measures"
    )


def _prints(runs: Sequence[Record], name: str) -> dict[str | None, list]:
  """{fingerprint of the held-out set: the runs that have it}."""
  found: dict[str | None, list] = {}
  for r in runs:
    prints = r.about.get("heldout_fingerprints") or {}
    found.setdefault(prints.get(f"evaluate.{name}"), []).append(r)
  return found


def _values(runs: Sequence[Record], key: str) -> set:
  return {json.dumps(r.about[key]) if key in r.about else None for r in runs}


def _same_text(runs, name: str, metric: str, prints: Mapping) -> str:
  """Why sets of unequal fingerprints may hold the same text; or BadConfig."""
  sets = "; ".join(
    f"{_short(p)}: {_names(members)}" for p, members in prints.items()
  )
  measured = [_yardsticks(r, name) for r in runs]
  if all(measured):
    if all(m == measured[0] for m in measured):
      return (
        f"the held-out sets of {name!r} are cut or tokenized otherwise and "
        "hold the same text: gzip and xz give it the same bits per byte"
      )
  elif None not in prints and not any(measured) and _one_text(runs, name):
    return (
      f"the held-out sets of {name!r} differ in their fingerprints (they are "
      "cut or tokenized otherwise); by their configs they are the same text"
    )
  raise BadConfig(
    f"{metric} of these runs is of different held-out data and cannot be "
    f"compared ({sets}). Evaluate all of them on one set (python -m "
    "aigc_jax.evaluate --workdir=DIR --text=FILE), or name only runs that "
    "share theirs"
  )


def _yardsticks(r: Record, name: str) -> tuple | None:
  for row in reversed(r.rows):
    found = tuple(row.get(f"eval/{name}/{kind}") for kind in YARDSTICKS)
    if None not in found:
      return found
  return None


def _one_text(runs: Sequence[Record], name: str) -> bool:
  """Whether all hold out the same text, and the same windows of it."""
  said = {_text(r, name) for r in runs}
  return len(said) == 1 and None not in said


def _text(r: Record, name: str) -> str | None:
  if r.config:
    return held_out.text_of(r.config, name)
  texts = r.about.get("heldout_texts") or {}  # of a file of results
  return texts.get(f"evaluate.{name}")


def _per_byte(runs, name: str, metric: str, notes: list[str]) -> tuple:
  """Bits per byte instead, where the text is known to be the same."""
  fair = f"eval/{name}/{PER_BYTE}"
  lacking = [r for r in runs if fair not in r.metrics]
  if lacking:
    raise BadConfig(
      f"the runs have different tokenizers: {metric} is of other tokens in "
      f"each, and {fair}, which could be compared, is not measured in "
      f"{_names(lacking)}"
    )
  return fair, notes + [
    f"the tokenizers differ, so that {metric} is of other tokens in each run: "
    f"{fair} instead"
  ]


def _same_training_data(runs: Sequence[Record], metric: str) -> list[str]:
  if len(_values(runs, "tokenizer_fingerprint")) > 1:
    raise BadConfig(
      f"the runs have different tokenizers, and {metric} is of other tokens in "
      "each: compare --metric=eval/heldout/bits_per_byte"
    )
  prints = _values(runs, "data_fingerprint")
  if len(prints) > 1:
    if not _one_text(runs, ""):
      raise BadConfig(
        f"{metric} of these runs is of different training data and cannot be "
        "compared: --metric=eval/heldout/loss, of a held-out set they share"
      )
    return [f"{metric}: the same text, in other batches"]
  if None in prints:
    return ["no run.json says which data was trained on: taken as shared"]
  return []


def shared_order(one: Record, other: Record) -> bool:
  """Whether two runs saw the same batches in the same order.

  By the hashes of their batches where rows have them, else by seed, data and
  the size of a batch.
  """
  if one.seed is None or one.seed != other.seed:
    return False
  hashes = [
    {
      row["step"]: row["data/batch_hash"]
      for row in r.rows
      if "data/batch_hash" in row
    }
    for r in (one, other)
  ]
  common = hashes[0].keys() & hashes[1].keys()
  if common:
    return all(hashes[0][step] == hashes[1][step] for step in common)
  prints = [r.about.get("data_fingerprint") for r in (one, other)]
  return prints[0] is not None and prints[0] == prints[1]


def _names(runs: Sequence[Record], most: int = 4) -> str:
  names = [r.name for r in runs]
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def _short(fingerprint: str | None) -> str:
  return "unknown" if fingerprint is None else fingerprint[:12]
