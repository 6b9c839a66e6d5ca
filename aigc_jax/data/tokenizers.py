"""Text <-> ids: bytes, SentencePiece, or a Hugging Face tokenizer.json.

Every tokenizer has: kind, name, vocab (how many ids), text_vocab (how many a
model needs rows for: special ids that no text makes may lie beyond), eot (the
id between documents), start (the ids it puts before a prompt by itself, mostly
none), special (ids for config.json, eos_token_id among them, see special.py),
fingerprint (sha256 of all that decides the ids of a text), special_fingerprint
(of what else its folder says of special tokens, "" for nothing), lossless,
byte_lengths (vocab,), and
  encode(text) -> int32 array without special ids; encode_documents(texts)
  decode(ids) -> str; decode_bytes(ids) -> bytes
special_words: {text: id} of special tokens, which are text to `encode` and ids
to `encode_special`. `Decoder` turns ids into text as they come. `save` and
`load` keep a tokenizer in a folder. Nothing that is loaded is executed.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from aigc_jax import files, records
from aigc_jax.data import sentences, special, spelling
from aigc_jax.data.listing import check_local
from aigc_jax.data.sentences import EOT, SentencePiece
from aigc_jax.errors import BadConfig, BadData, nearest

LARGEST = 256 << 20  # bytes of a tokenizer file
MOST = 8_000_000  # lists and objects in it: a merge may be a list
MOST_IDS = 1 << 24  # beyond all tokenizers, and tables of it fit in a memory
EXPECTED = (  # of the key data.tokenizer, in words
  "'bytes', 'sentencepiece', a path that ends in .model, 'hf:FOLDER' with a "
  "tokenizer.json, or a folder with a saved tokenizer"
)
EOT_NAMES = (
  "<|endoftext|>",
  "<|end_of_text|>",
  "</s>",
  "<eos>",
  "<|eos|>",
  "[SEP]",
)


class Bytes:
  """Every byte is an id, 256 is the end of text. Lossless on any bytes."""

  kind = "bytes"
  name = "bytes"
  vocab = text_vocab = 257
  eot = 256
  special_words = {EOT: 256}
  special = special.ids({}, 256, 257)
  start = ()
  lossless = True
  fingerprint = hashlib.sha256(b"bytes 257").hexdigest()
  special_fingerprint = ""
  byte_lengths = np.array([1] * 256 + [0], np.int32)

  def encode_bytes(self, data: bytes) -> np.ndarray:
    """The ids of raw bytes."""
    return np.frombuffer(data, np.uint8).astype(np.int32)

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text as UTF-8; lone surrogates become '?'."""
    return self.encode_bytes(text.encode("utf-8", "replace"))

  def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
    """`encode` of each text."""
    return [self.encode(text) for text in texts]

  def decode_bytes(self, ids) -> bytes:
    """The bytes of the ids, without ends of text."""
    ids = np.asarray(ids).ravel()
    return ids[ids < 256].astype(np.uint8).tobytes()

  def decode(self, ids) -> str:
    """The text of the ids; what is not UTF-8 becomes U+FFFD."""
    return self.decode_bytes(ids).decode("utf-8", "replace")

  def decoder(self, after=()):
    """A function for ids that come one at a time; see `Decoder`."""
    return spelling.of_bytes(lambda i: bytes([i]) if 0 <= i < 256 else b"")

  def files(self) -> dict[str, bytes]:
    """What `save` writes besides the manifest."""
    return {}


class HuggingFace:
  """tokenizer.json by the `tokenizers` library (extra [hf])."""

  kind = "hf"

  def __init__(
    self,
    model: bytes,
    eot: str,
    name: str,
    beside: Mapping[str, bytes] | None = None,
  ):
    """beside: the other files of its folder, as `data.special` reads them."""
    self._model, self._eot, self.name = model, eot, name
    self.beside = dict(beside or {})
    try:
      import tokenizers
    except ImportError as e:
      raise BadConfig(
        f"{name}: needs the tokenizers library: pip install 'aigc_jax[hf]'"
      ) from e
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
      self._hf = hf = tokenizers.Tokenizer.from_buffer(model)
    except Exception as e:  # the library raises Exception itself
      raise BadData(f"{name}: not a tokenizer.json: {e}") from e
    hf.no_padding()
    hf.no_truncation()
    hf.encode_special_tokens = True  # the text "<s>" is text
    ids = hf.get_vocab(with_added_tokens=True)
    if eot not in ids:
      raise BadData(f"{name}: end of text {eot!r} is not in its vocabulary")
    self.eot = ids[eot]
    self.vocab = max(ids.values()) + 1
    if self.vocab > MOST_IDS:
      raise BadData(
        f"{name}: its largest id is {self.vocab - 1}, of {len(ids)} pieces: "
        f"expected ids below {MOST_IDS}"
      )
    self.special = special.ids(self.beside, self.eot, self.vocab)
    # What its post-processor adds in front: <s> for Llama, nothing for GPT-2.
    with _library(name):
      whole = hf.encode("", add_special_tokens=True).ids
    self.start = tuple(i for i in whole if i != self.eot or len(whole) == 1)
    # Special tokens are not looked for in a text, so that only those that are
    # pieces as well can come from one.
    special_ids = _special_ids(hf)
    self.special_words = {hf.id_to_token(i): i for i in special_ids}
    made = {
      *hf.get_vocab(with_added_tokens=False).values(), self.eot, *self.start,
      *(i for i in ids.values() if i not in special_ids),
    }  # fmt: skip
    self.text_vocab = max(made) + 1
    self.lossless = False  # depends on its normaliser; not promised
    self.byte_lengths = _lengths(hf, ids, self.vocab)
    self.fingerprint = _hf_fingerprint(model, eot)

  def __reduce__(self):
    return type(self), (self._model, self._eot, self.name, self.beside)

  @functools.cached_property
  def named_special(self) -> dict[str, str]:
    """{"mask_token": "[MASK]", ...}: what its folder calls them."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
      for role, word in json.loads(self.beside.get(file, b"{}")).items():
        word = word.get("content") if isinstance(word, dict) else word
        if role.endswith("_token") and isinstance(word, str):
          found[role] = word
    return found

  @property
  def special_fingerprint(self) -> str:
    """sha256 of what masks and edges of texts are, and of what ends them.

    Other files than tokenizer.json say so, of which no fingerprint is.
    """
    roles = ("mask_token", "cls_token", "sep_token")
    words = [self.named_special.get(role) for role in roles]
    return files.sha256_json(["special 1", words, special.stops(self)])

  @property
  def continues(self) -> str:
    """What pieces within a word begin with, "##" of WordPiece, or nothing."""
    return getattr(self._hf.model, "continuing_subword_prefix", None) or ""

  def piece(self, i: int) -> str:
    """The piece of an id as it is spelled there, "" where there is none."""
    return self._hf.id_to_token(i) or ""

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, int32; no special ids."""
    return self.encode_documents([text])[0]

  def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
    """`encode` of each text, in one call."""
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    with _library(self.name):
      found = self._hf.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(e.ids, np.int32) for e in found]

  def encode_special(self, text: str) -> np.ndarray:
    """The ids of a text in which special tokens are looked for."""
    text = text.encode("utf-8", "replace").decode()
    self._hf.encode_special_tokens = False
    try:
      with _library(self.name):
        ids = self._hf.encode(text, add_special_tokens=False).ids
    finally:
      self._hf.encode_special_tokens = True
    return np.asarray(ids, np.int32)

  def decode(self, ids) -> str:
    """The text of the ids, without special ones."""
    ids = np.asarray(ids).ravel().tolist()
    with _library(self.name):
      return self._hf.decode(ids, skip_special_tokens=True)

  def decode_bytes(self, ids) -> bytes:
    """The UTF-8 of `decode`."""
    return self.decode(ids).encode()

  def decoder(self, after=()):
    """A function for ids that come one at a time; see `Decoder`."""
    if self._spell:
      return spelling.of_bytes(self._spell)
    return spelling.Spelling(self._rules, after)

  @functools.cached_property
  def _spell(self):
    return spelling.spell_of(self._hf)

  @functools.cached_property
  def _rules(self) -> spelling.Rules:
    return spelling.rules_of(self._hf)

  def files(self) -> dict[str, bytes]:
    """What `save` writes besides the manifest."""
    return {"tokenizer.json": self._model, **self.beside}


@contextlib.contextmanager
def _library(name: str) -> Iterator[None]:
  """The library says with a bare Exception that a tokenizer.json fails.

  Some do so for some texts alone, as without a piece for what is unknown.
  """
  try:
    yield
  except Exception as e:
    raise BadData(f"{name}: its tokenizer.json fails: {e}") from e


def _special_ids(hf) -> set[int]:
  return {i for i, t in hf.get_added_tokens_decoder().items() if t.special}


def _lengths(hf, ids: dict[str, int], vocab: int) -> np.ndarray:
  """Bytes of each id's text: exact for byte-level tokenizers, else near."""
  lengths = np.zeros(vocab, np.int32)
  special = _special_ids(hf)
  by_bytes = "ByteLevel" in type(hf.decoder).__name__
  for piece, i in ids.items():
    if i in special:
      continue
    if by_bytes:  # one character of such a piece stands for one byte
      lengths[i] = len(piece)
    elif len(piece) == 6 and piece.startswith("<0x"):
      lengths[i] = 1
    else:
      piece = piece.removeprefix("##").replace("\u2581", " ")
      lengths[i] = len(piece.encode("utf-8", "replace"))
  return lengths


class Decoder:
  """Ids to text as they come: in the end, what decoding all at once gives.

  `push(id)` gives the text that no later id can change, `flush()` the rest.
  after: the ids of a whole text that these continue.
  """

  def __init__(self, tokenizer, after=()):
    self._push = tokenizer.decoder(tuple(after))

  def push(self, id: int) -> str:
    """The text that `id` completes; "" while a character is unfinished."""
    return self._push(int(id), False)

  def flush(self) -> str:
    """What is left; an unfinished character becomes U+FFFD."""
    return self._push(None, True)


def bytes_of(tokenizer, ids) -> int:
  """How many bytes of text the ids stand for."""
  return int(tokenizer.byte_lengths[np.asarray(ids)].sum(dtype=np.int64))


def encode_special(tokenizer, text: str) -> np.ndarray:
  """The ids of a text in which special tokens are looked for."""
  if tokenizer.kind == "hf":
    return tokenizer.encode_special(text)
  words = tokenizer.special_words
  cut = re.split(f"({'|'.join(map(re.escape, words))})", text)
  parts = [
    [words[part]] if part in words else tokenizer.encode(part)
    for part in cut
    if part
  ]
  return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def check_ids(tokenizer, ids, vocab: int) -> None:
  """Raises BadData for an id of a text that a model of `vocab` ids lacks.

  On the device an id out of range is no error: it silently reads another row.
  """
  largest = int(np.max(ids, initial=0))
  if largest >= vocab:
    raise BadData(
      f"the text holds token id {largest} ({tokenizer.decode([largest])!r}), "
      f"and the model has ids up to {vocab - 1} only: leave that piece out of "
      "the text, or use a model whose vocab is larger"
    )


def load_tokenizer(spec: str):
  """ "bytes", "PATH/x.model", "hf:FOLDER", or a folder that `save` wrote.

  Raises BadConfig for another word, BadData for a file that is none.
  """
  if not spec.removeprefix("hf:").strip():
    raise BadConfig(f"data.tokenizer={spec!r} names none: expected {EXPECTED}")
  check_local(spec, "data.tokenizer")
  if spec == "bytes":
    return Bytes()
  if spec.startswith("hf:"):
    return _hugging_face(spec.removeprefix("hf:"))
  path = files.expanded(spec)
  if spec.endswith(".model"):  # a link is what was meant
    model = files.content(Path(os.path.realpath(path)), LARGEST)
    return SentencePiece(model, str(spec))
  if path.is_dir():
    return load(path)
  raise BadConfig(
    f"data.tokenizer={spec!r}: expected {EXPECTED}"
    f"{nearest(spec, ('bytes', 'sentencepiece'))}"
  )


def _hugging_face(folder: str) -> HuggingFace:
  path = files.expanded(folder)
  if path.name == "tokenizer.json":
    path = path.parent
  model = files.content(path / "tokenizer.json", LARGEST)
  beside = special.read(path)
  names = []
  for file in ("tokenizer_config.json", "special_tokens_map.json"):
    eos = json.loads(beside.get(file, b"{}")).get("eos_token")
    names.append(eos.get("content") if isinstance(eos, dict) else eos)
  where = str(path / "tokenizer.json")
  added = files.parse_json(model, where, MOST).get("added_tokens") or []
  if not isinstance(added, list):
    raise BadData(f"{where}: added_tokens={str(added)[:80]}: expected a list")
  added = [t.get("content") for t in added if isinstance(t, dict)]
  names += [name for name in EOT_NAMES if name in added]
  names = [name for name in names if isinstance(name, str)]
  if not names:
    raise BadData(
      f"{path}: no end-of-text token; name it as eos_token in "
      "tokenizer_config.json"
    )
  return HuggingFace(model, names[0], f"hf:{folder}", beside)


def save(tokenizer, folder) -> None:
  """Writes a tokenizer into `folder`, so that `load` gives the same."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in tokenizer.files().items():
    files.write_bytes(folder / name, data)
  manifest = {
    "kind": tokenizer.kind,
    "name": tokenizer.name,
    "vocab": tokenizer.vocab,
    "eot": tokenizer.eot,
    "eot_text": getattr(tokenizer, "_eot", ""),
    "fingerprint": tokenizer.fingerprint,
  }
  files.write_json(folder / "manifest.json", manifest)


def _hf_fingerprint(model: bytes, eot: str) -> str:
  """sha256 of all that decides the ids, known before the model is read."""
  return hashlib.sha256(f"hf 1 {eot}\n".encode() + model).hexdigest()


# kind -> (its file; fingerprint, tokenizer of that file's bytes and a manifest)
LOADERS = {
  "bytes": ("", lambda model, m: Bytes.fingerprint, lambda *_: Bytes()),
  "sentencepiece": (
    "tokenizer.model",
    lambda model, m: sentences.fingerprint(model),
    lambda model, m, folder: SentencePiece(model, m["name"]),
  ),
  "hf": (
    "tokenizer.json",
    lambda model, m: _hf_fingerprint(model, m["eot_text"]),
    lambda model, m, folder: HuggingFace(
      model, m["eot_text"], m["name"], special.read(folder)
    ),
  ),
}  # fmt: skip
MANIFEST = {
  "kind": str,
  "name": str,
  "vocab": range(1, 2**31),
  "eot": range(2**31),
  "eot_text": str,
  "fingerprint": records.SHA256,
}


def load(folder):
  """The tokenizer that `save` wrote. Raises BadData if it is another now.

  Its files are regular ones of this folder: no link is followed. Other bytes
  than were saved are refused before any library reads them.
  """
  folder = Path(folder)
  where = folder / "manifest.json"
  manifest = files.read_json(where, LARGEST)
  records.check(manifest, {"kind": str}, str(where))
  if manifest["kind"] not in LOADERS:
    raise BadData(
      f"{folder}: unknown tokenizer kind {records.shown(manifest['kind'])}"
    )
  records.check(manifest, MANIFEST, str(where))
  name, fingerprint, make = LOADERS[manifest["kind"]]
  model = files.content(folder / name, LARGEST) if name else b""
  if fingerprint(model, manifest) == manifest["fingerprint"]:
    tokenizer = make(model, manifest, Path(os.path.realpath(folder)))
    if all(getattr(tokenizer, k) == manifest[k] for k in ("vocab", "eot")):
      return tokenizer
  raise BadData(
    f"{folder}: the tokenizer is not the one that its manifest names; "
    "delete the folder and run again"
  )
