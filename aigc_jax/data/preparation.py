"""Finds the tokenizer and the token stores of a run, or makes them.

ROOT/corpora/        datasets of the embedded corpora
ROOT/tokenizers/     trained tokenizers, by source and size
ROOT/stores/         token stores, by source, split and tokenizer
ROOT/fingerprints/   remembered sha256 of text files

A name holds a hash of all that decides the content, so what is found is right
and two runs share it; what is in use is never changed.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aigc_jax.data import sentences
from aigc_jax.data.documents import changed
from aigc_jax.data.listing import check_local
from aigc_jax.data.sources import open_source
from aigc_jax.data.store import Store
from aigc_jax.data.tokenizers import load, load_tokenizer, save
from aigc_jax.data.writer import ELSEWHERE, Progress, write
from aigc_jax.errors import BadConfig
from aigc_jax.files import expanded, locked, sha256_json, storage
from aigc_jax.terminal import counted

SAMPLE = 4 << 20  # bytes of text that a tokenizer is trained on
LARGE = 64 << 20  # bytes from which several workers are worth a hint


def _key(*content) -> str:
  return sha256_json(content)[:16]


def _safe(name: str) -> str:
  return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:40].strip(".") or "text"


def _open(sources: list[dict], validation, root, say) -> list:
  if not sources:
    raise BadConfig("data.sources is empty: name at least one source")
  return [
    open_source(dict(s), validation=validation, root=root, say=say)
    for s in sources
  ]


def find_tokenizer(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  validation: float,
  root: str,
  special: Sequence[str] = (),
  called: str = "",
  say: Callable[[str], None] = print,
):
  """The tokenizer of a run; "sentencepiece" is trained on the first source.

  called: what that is, where its own name says nothing to a user. special:
  words for ids that one trained here has besides those of texts.
  Raises BadConfig and BadData; see tokenizers.py and sentences.py.
  """
  check_local(root, "data.root")
  if tokenizer != "sentencepiece":
    return load_tokenizer(tokenizer)
  root = expanded(root)
  source = _open(sources, validation, root, say)[0]
  if not source.present:
    source.obtain(False, say)
  folder, missing = _trained(source, sources[0], tokenizer_vocab, special, root)
  if missing:
    with storage(folder, ELSEWHERE), locked(Path(f"{folder}.lock"), say):
      if not (folder / "manifest.json").is_file():
        started = time.perf_counter()
        say(f"training a SentencePiece tokenizer of {tokenizer_vocab} pieces "
            f"on {called or repr(source.name)}")  # fmt: skip
        texts = _sample(source, sources[0]["split"])
        name = f"sentencepiece-{tokenizer_vocab} of {called or source.name}"
        made = sentences.train(texts, tokenizer_vocab, name, special)
        if not source.unchanged():
          raise changed(source.name)
        save(made, folder)
        say(f"tokenizer: {folder} ({time.perf_counter() - started:.1f} s)")
  return load(folder)


def _trained(
  source, spec: dict, vocab: int, special: Sequence[str], root: Path
) -> tuple[Path, bool]:
  """Where the tokenizer trained on a source is, and whether it is missing."""
  words = [list(special)] if special else []
  key = _key("bpe 1", source.fingerprint, source.division, spec["split"],
             vocab, SAMPLE, *words)  # fmt: skip
  folder = root / "tokenizers" / f"{_safe(source.name)}-{vocab}-{key}"
  return folder, not (folder / "manifest.json").is_file()


def _sample(source, split: str) -> list[str]:
  """About SAMPLE bytes of a source, from the start of each of its jobs."""
  jobs = source.jobs(split)
  texts = []
  for job in jobs:
    left = max(1, SAMPLE // len(jobs))
    for document in source.read(job, split):
      texts.append(document.data[:left].decode("utf-8", "replace"))
      left -= len(document.data)
      if left <= 0:
        break
  return texts


def _folder(source, split: str, tokenizer, root: Path) -> Path:
  key = _key("store 2", source.fingerprint, source.division, split,
             tokenizer.fingerprint)  # fmt: skip
  return root / "stores" / f"{_safe(source.name)}-{_safe(split)}-{key}"


def open_stores(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  validation: float,
  root: str,
  split: str | None,
  workers: int,
  say: Callable[[str], None],
  progress: Progress | None,
  download: bool = False,
  special: Sequence[str] = (),
) -> tuple[object, list[Store]]:
  """(tokenizer, one store for each source), prepared where missing.

  tokenizer: as a config names it, or one that is there already. split: of
  all the sources; None takes each source's own. download: get TFDS datasets
  that are not on this machine; otherwise they are a BadData.
  """
  check_local(root, "data.root")
  root = expanded(root)
  opened = _open(sources, validation, root, say)
  for source in opened:
    if not source.present:
      source.obtain(download, say)
  found = tokenizer
  if isinstance(tokenizer, str):
    found = find_tokenizer(
      sources=sources,
      tokenizer=tokenizer,
      tokenizer_vocab=tokenizer_vocab,
      validation=validation,
      root=root,
      special=special,
      say=say,
    )
  stores = []
  for spec, source in zip(sources, opened, strict=True):
    part = split or spec["split"]
    folder = _folder(source, part, found, root)
    if folder.is_dir():
      store = Store(folder)
    else:
      store = _prepare(folder, source, part, found, workers, say, progress)
    store.check(say, progress)
    stores.append(store)
  return found, stores


def _prepare(folder, source, split, tokenizer, workers, say, progress) -> Store:
  """One store, with a word before and after."""
  started = time.perf_counter()
  say(f"preparing {source.name!r} ({split}) with {tokenizer.name!r}")
  left_out = getattr(source, "left_out", "")
  if left_out:
    say(f"{source.name!r}: left out: {left_out}")
  store = write(
    folder,
    source,
    split,
    tokenizer,
    workers=workers,
    say=say,
    progress=progress,
  )
  seconds = time.perf_counter() - started
  m = store.manifest
  if m["replaced"]:
    say(
      f"{source.name!r}: {counted(m['replaced'], 'document')} not in UTF-8; "
      "bad bytes became U+FFFD (the bytes tokenizer would keep them)"
    )
  say(
    f"{source.name!r} ({split}): {m['tokens']:,} tokens of "
    f"{counted(m['documents'], 'document')}, "
    f"{m['bytes_per_token']:.2f} bytes per token, {seconds:.1f} s, "
    f"{m['bytes'] / 1e6 / max(seconds, 1e-9):.1f} MB/s: {folder}"
  )
  if m["bytes"] > LARGE and not workers:
    say("python -m aigc_jax.prepare --workers=N does this with N processes")
  return store


def prepare(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  validation: float,
  root: str,
  splits: tuple[str | None, ...],
  workers: int,
  say: Callable[[str], None] = print,
  progress: Progress | None = None,
  download: bool = False,
  special: Sequence[str] = (),
) -> list[Store]:
  """Makes the stores of all sources and splits ahead of time.

  A split of None is each source's own. What is there already is kept. Raises
  BadConfig for impossible settings, BadData where a source or tokenizer cannot
  be used, StorageFailure where `root` cannot be written.
  """
  if workers < 0:
    raise BadConfig(f"workers={workers}: expected 0 or more processes")
  stores = []
  for split in splits:
    stores += open_stores(
      sources=sources,
      tokenizer=tokenizer,
      tokenizer_vocab=tokenizer_vocab,
      validation=validation,
      root=root,
      split=split,
      workers=workers,
      say=say,
      progress=progress,
      download=download,
      special=special,
    )[1]
  return stores


def prepared(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  validation: float,
  root: str,
  split: str | None = None,
  special: Sequence[str] = (),
) -> list[dict] | None:
  """The manifests of the stores, one for each source; None if one is missing.

  Nothing is prepared and nothing is said.
  """
  root = expanded(root)
  opened = _open(sources, validation, root, lambda text: None)
  if not all(source.present for source in opened):
    return None
  if tokenizer == "sentencepiece":
    folder, missing = _trained(
      opened[0], sources[0], tokenizer_vocab, special, root
    )
    if missing:
      return None
    found = load(folder)
  else:
    found = load_tokenizer(tokenizer)
  manifests = []
  for spec, source in zip(sources, opened, strict=True):
    folder = _folder(source, split or spec["split"], found, root)
    if not folder.is_dir():
      return None
    manifests.append(Store(folder).manifest)
  return manifests
