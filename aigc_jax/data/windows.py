"""Streams and held-out sets of windows of token stores."""

from collections.abc import Mapping, Sequence

from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.spec import Spec
from aigc_jax.data.store import Store
from aigc_jax.data.stream import EvalSet, Stream, check_batch, digest, used
from aigc_jax.data.tasks import Task, made_by, spec_of, task_of
from aigc_jax.data.views import Paired, Pieces, View, Windows
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.terminal import counted

# The options of a task that text itself decides.
GIVEN = ("eot", "segments", "tokenizer")


def batch_spec(task: Mapping, batch: int, length: int, segments: bool) -> Spec:
  """What a batch of windows is under a task."""
  found, options = task_of(task, GIVEN)
  sizes = dict(batch=batch, length=length, segments=segments)
  return spec_of(found, options, **sizes)


def stream_of(
  stores: Sequence[Store],
  weights: Sequence[float],
  tokenizer,
  *,
  task: Mapping,
  batch: int,
  length: int,
  segments: bool,
  shuffle: bool,
  skip_steps,
  seed: int,
) -> Stream:
  """Endless windows of token stores, mixed by weight.

  Raises BadData where the stores are smaller than one batch, BadConfig for
  impossible settings.
  """
  check_batch(batch=batch, length=length)
  found, options = task_of(task, GIVEN)
  found_views = _beside(found, options, [Windows(s, length) for s in stores])
  views, shares = used(found_views, weights)
  _check_tokens([view.store for view in views], tokenizer)
  total = sum(len(view) for view in views)
  for view in views:
    if not len(view) or total < batch:
      _too_small(view.store, len(view), total, batch, length)
  given = dict(eot=tokenizer.eot, segments=segments, tokenizer=tokenizer)
  return Stream(
    views,
    shares,
    made_by(found, options, **given),
    spec=batch_spec(task, batch, length, segments),
    batch=batch,
    shuffle=shuffle,
    skip_steps=skip_steps,
    seed=seed,
    fingerprint=digest(
      "stream 1", [view.fingerprint for view in views], shares, dict(task),
      batch, length, bool(segments), bool(shuffle),
    ),
    tokenizer=tokenizer,
  )  # fmt: skip


def eval_of(
  stores: Sequence[Store],
  tokenizer,
  *,
  task: Mapping,
  batch: int,
  length: int,
  segments: bool,
) -> EvalSet:
  """All the tokens of token stores, in windows of which the last are padded.

  Its counts are of the targets of a task that has each token just once:
  tokens, ends of text included, and UTF-8 bytes of the text they spell;
  yardsticks are bits per byte of gzip and xz on the same text.
  """
  check_batch(batch=batch, length=length)
  _check_tokens(stores, tokenizer)
  found, options = task_of(task, GIVEN)
  given = dict(eot=tokenizer.eot, segments=segments, tokenizer=tokenizer)
  targets, counts, yardsticks, texts = None, {}, {}, ""
  if found.exact:
    targets = sum(store.tokens - 1 for store in stores)
    counts = {"tokens": targets, "bytes": sum(store.bytes for store in stores)}
    yardsticks = _yardsticks(stores)
    texts = texts_fingerprint([store.bytes for store in stores])
  views = [Pieces(store, length, tokenizer.eot) for store in stores]
  return EvalSet(
    _beside(found, options, views),
    made_by(found, options, **given),
    spec=batch_spec(task, batch, length, segments),
    batch=batch,
    fingerprint=eval_fingerprint(
      [s.fingerprint for s in stores], task, batch, length, segments
    ),
    targets=targets,
    counts=counts,
    recount=_recount if found.exact else lambda part: (None, {}),
    yardsticks=yardsticks,
    tokenizer=tokenizer,
    texts_fingerprint=texts,
  )


def texts_fingerprint(sizes: Sequence[int]) -> str:
  """That of stores of so many bytes of text.

  Bits per byte are of these, and a tokenizer that puts several spaces as one
  gives the ids of one text to another that is longer.
  """
  return digest("text 1", list(sizes))


def _beside(task: Task, options: Mapping, views: list[Windows]) -> list[View]:
  """The views, with another window beside each where the task asks for it."""
  return [Paired(v) for v in views] if task.pairs(**options) else views


def check_task(task: Mapping, tokenizer, model: Mapping) -> None:
  """Refuses a tokenizer or a model that lacks what a task needs."""
  found, options = task_of(task, GIVEN)
  found.check(tokenizer, model, **options)


def eval_fingerprint(
  stores: Sequence[str], task: Mapping, batch: int, length: int, segments: bool
) -> str:
  """That of an EvalSet of stores with these fingerprints."""
  return digest(
    "evalset 1", list(stores), dict(task), batch, length, bool(segments)
  )


def _recount(part: EvalSet) -> tuple[int, dict[str, int]]:
  """(targets, counts) over the batches that a set has."""
  tokens = size = 0
  for index in range(part.batches):
    batch = part.rows(index, slice(None))
    real = batch["targets"][batch["weights"] > 0]
    tokens += len(real)
    size += int(part.tokenizer.byte_lengths[real].sum())
  return tokens, {"tokens": tokens, "bytes": size}


def _yardsticks(stores: Sequence[Store]) -> dict[str, float]:
  """Those of the stores together, each weighing as many bytes as it has."""
  found = [s for s in stores if s.manifest["yardsticks"]]
  total = sum(store.bytes for store in found)
  return {
    name: sum(s.manifest["yardsticks"][name] * s.bytes for s in found) / total
    for name in ("gzip", "xz")
    if total
  }


def _too_small(store, size, all_sizes, batch, length):
  name = f"{store.manifest['name']!r} ({store.manifest['split']})"
  most = (store.tokens - 1) // batch
  way_out = f"--config.data.length={most}, " if most >= 8 else ""
  what = "one window" if not size else "one batch"
  raise BadData(
    f"source {name} has {counted(store.tokens, 'token')}, "
    f"{counted(size, 'window')} of length "
    f"{length}, which is less than {what} (batch={batch} x length={length} = "
    f"{batch * length} tokens); use a smaller batch or length "
    f"({way_out}--config.data.batch={max(all_sizes, 1)}) or more text"
  )


def _check_tokens(stores, tokenizer) -> None:
  """Stores must have been made with this tokenizer and hold only its ids."""
  for store in stores:
    made = store.manifest["tokenizer"]["fingerprint"]
    if made != tokenizer.fingerprint:
      raise BadData(
        f"{store.folder}: made with another tokenizer "
        f"({store.manifest['tokenizer']['name']}) than {tokenizer.name}; "
        "prepare it again"
      )
    if store.max_token >= tokenizer.vocab:
      raise BadData(
        f"{store.folder}: holds token id {store.max_token}, but the tokenizer "
        f"has {tokenizer.vocab} ids; delete the folder and prepare it again"
      )


def check_vocab(found: Stream | EvalSet, model: Mapping) -> None:
  """Raises BadConfig where the model has fewer ids than text can need.

  On the device an id out of range is no error: it silently reads another row.
  """
  held = (view.store.max_token + 1 for view in found.views)
  needed = max(found.tokenizer.text_vocab, *held)
  vocab = vocab_of(model, needed)
  if vocab < needed:
    raise BadConfig(
      f"model.vocab={vocab}, but the tokenizer ({found.tokenizer.name}) makes "
      f"{needed} ids: {flags_of(model, 'vocab', needed)} (a multiple of 128 is "
      f"faster: {-(-needed // 128) * 128})"
    )
