"""Our tokenizers as the files that AutoTokenizer reads, with the same ids.

https://huggingface.co/docs/tokenizers: a normaliser changes the text, a
pre-tokenizer cuts it, a model gives ids, a decoder goes back.
"""

import base64
import dataclasses
import json
import os
from pathlib import Path

from aigc_jax.data import masking, sentences, special, spelling
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf.table import Family

SPACE = "\u2581"  # what stands for a space in SentencePiece's pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
PLAIN = "PreTrainedTokenizerFast"  # what reads tokenizer.json as it is
# What transformers calls the special tokens of masked text.
ROLES = {
  "mask_token": masking.MASK,
  "cls_token": masking.FIRST,
  "sep_token": masking.LAST,
}
# Texts that show a difference between two tokenizers, if there is one.
PROBES = (
  "",
  " ",
  "Hello, world!  Two  spaces,\ttabs\r\nand lines.\n\n\n",
  "def f(x):\n    return x ** 2  # caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
  "\u4f60\u597d \u0645\u0631\u062d\u0628\u0627",
  "\U0001f600\U0001f468\u200d\U0001f469 e\u0301",
  "\u2581 \x10 \x10u \x10\x10u \x00\x01\x7f \ufb01 \u2163 \u3000 \ufeff",
  "<|endoftext|> <unk> <s> </s> <0x41> [SEP]",
  "aaaaaaa abababababab        ========== ......... 1234567890",
  ("word " * 1200 + "\n") * 3,
)  # fmt: skip

# Spaces are where classes that make a tokenizer anew differ most.
SPACED = (
  "word", " word", "  word", "word ", "\nword", "word\n word", "\tword",
  "one  two   three", "It's DON'T we'll I'M", "12345 67 8,900.5", "x=1;y<<=2",
  "<b>bold</b> &amp;", "snake_case camelCase", "\u00e9t\u00e9 e\u0301te\u0301",
  "\u65e5\u672c\u8a9e\u306e\u6587", "end.",
)  # fmt: skip


def files(tokenizer, length: int, family: Family) -> dict[str, str]:
  """{file name: text} for a tokenizer of `data.tokenizers`.

  length: the longest text the model reads, in tokens. Raises BadConfig for a
  SentencePiece model that tokenizer.json cannot express.
  """
  if tokenizer.kind == "hf":
    return _as_it_was(tokenizer, length, family)
  make = dict(bytes=of_bytes, sentencepiece=of_sentencepiece)[tokenizer.kind]
  model = make(tokenizer)
  config = _config(model, tokenizer.eot, length)
  # A special token that is spelled in the text is text, as in training; but
  # that is how somebody who asks for a hidden word writes it.
  hides = family.pipeline == "fill-mask"
  config["split_special_tokens"] = not hides
  if hides:
    config |= _roles(tokenizer)
    model["post_processor"] = _edges(tokenizer)
  return {
    "tokenizer.json": json.dumps(model, ensure_ascii=False) + "\n",
    "tokenizer_config.json": _json(_kept_class(config, family)),
  }


def _config(model: dict, eot: int, length: int) -> dict:
  """tokenizer_config.json for a tokenizer with one special token."""
  content = _content(model, eot)
  return dict(
    tokenizer_class=PLAIN,
    bos_token=content,
    eos_token=content,
    pad_token=content,
    clean_up_tokenization_spaces=False,
    model_max_length=length,
  )


def _roles(tokenizer) -> dict:
  """What a tokenizer that is trained here has for masked text, by its use."""
  return {
    role: word
    for role, word in ROLES.items()
    if word in tokenizer.special_words
  }


def _edges(tokenizer) -> dict | None:
  """A template that puts a text between its edges, where there are some."""
  words = tokenizer.special_words
  if masking.FIRST not in words or masking.LAST not in words:
    return None

  def edge(word: str, kind: int) -> dict:
    return {"SpecialToken": {"id": word, "type_id": kind}}

  def text(name: str, kind: int) -> dict:
    return {"Sequence": {"id": name, "type_id": kind}}

  first, last = masking.FIRST, masking.LAST
  single = [edge(first, 0), text("A", 0), edge(last, 0)]
  return {
    "type": "TemplateProcessing",
    "single": single,
    "pair": [*single, text("B", 1), edge(last, 1)],
    "special_tokens": {
      word: {"id": word, "ids": [words[word]], "tokens": [word]}
      for word in (first, last)
    },
  }


def _as_it_was(tokenizer, length: int, family: Family) -> dict[str, str]:
  """The files of a Hugging Face tokenizer, for a model of this family."""
  made = {n: data.decode("utf-8") for n, data in tokenizer.files().items()}
  origin = json.loads(made.pop("config.json", "{}"))
  config = json.loads(made.get("tokenizer_config.json", "{}"))
  if not config and "special_tokens_map.json" not in made:
    config = _config(json.loads(made["tokenizer.json"]), tokenizer.eot, length)
  kind = config.get("tokenizer_class") or origin.get("tokenizer_class")
  if kind is None and origin.get("model_type") != family.model_type:
    kind = PLAIN  # or the model's family would decide on another class
  if kind is not None:
    config = _kept_class(config | {"tokenizer_class": kind}, family)
  config.setdefault("model_max_length", length)
  made["tokenizer_config.json"] = _json(config)
  if "generation_config.json" in made:
    named = json.loads(made["generation_config.json"])
    others = {
      key: value
      for key, value in named.items()
      if value is not None and key not in special.IDS
    }
    made["generation_config.json"] = _json(others | tokenizer.special)
  return made


def _kept_class(config: dict, family: Family) -> dict:
  """The same, such that transformers keeps to the class that it names.

  For some families version 5 takes the family's own class, whatever is named
  here, unless auto_map is there too. This one names no code at all, and by
  default is passed over; only trust_remote_code=True stumbles over it. What
  would avoid that, an empty tokenizer_class, version 4 does not load.
  """
  if family.insist in ("", config["tokenizer_class"].removesuffix("Fast")):
    return config
  return config | {"auto_map": {"AutoTokenizer": ["", ""]}}


def _json(values: dict) -> str:
  """As text; not indented, where deep lists would grow beyond all bounds."""
  return json.dumps(values) + "\n"


def _content(model: dict, id: int) -> str:
  """The text of a special token."""
  for token in model.get("added_tokens") or []:
    if token["id"] == id:
      return token["content"]
  vocab = model["model"]["vocab"]
  pairs = vocab.items() if isinstance(vocab, dict) else (
    (piece, i) for i, (piece, _) in enumerate(vocab)
  )  # fmt: skip
  return next(piece for piece, i in pairs if i == id)


def _special(id: int, content: str) -> dict:
  return dict(
    id=id,
    content=content,
    single_word=False,
    lstrip=False,
    rstrip=False,
    normalized=False,
    special=True,
  )


def _whole(**parts) -> dict:
  return dict(
    version="1.0",
    truncation=None,
    padding=None,
    added_tokens=parts.pop("added_tokens"),
    normalizer=parts.pop("normalizer"),
    pre_tokenizer=parts.pop("pre_tokenizer"),
    post_processor=None,
    decoder=parts.pop("decoder"),
    model=parts.pop("model"),
  )


def _bpe(vocab: dict, merges: list, **more) -> dict:
  plain = dict(
    type="BPE",
    dropout=None,
    unk_token=None,
    continuing_subword_prefix=None,
    end_of_word_suffix=None,
    fuse_unk=False,
    byte_fallback=False,
    ignore_merges=False,
  )
  return plain | more | dict(vocab=vocab, merges=merges)


# Bytes.


def of_bytes(tokenizer) -> dict:
  """tokenizer.json of the bytes tokenizer: 256 letters and an end of text."""
  level = dict(
    type="ByteLevel", add_prefix_space=False, trim_offsets=False,
    use_regex=False,
  )  # fmt: skip
  vocab = {letter: byte for byte, letter in enumerate(spelling.byte_letters())}
  return _whole(
    added_tokens=[_special(tokenizer.eot, sentences.EOT)],
    normalizer=None,
    pre_tokenizer=level,
    decoder=level,
    model=_bpe(vocab, []),
  )


# SentencePiece.


def of_sentencepiece(tokenizer) -> dict:
  """tokenizer.json of a SentencePiece model, with our escapes and blocks."""
  from sentencepiece import sentencepiece_model_pb2 as messages

  proto = messages.ModelProto.FromString(tokenizer.files()["tokenizer.model"])
  _check_expressible(tokenizer.name, proto)
  special = [
    _special(i, p.piece)
    for i, p in enumerate(proto.pieces)
    if p.type in (UNKNOWN, CONTROL)
  ]
  if tokenizer.eot >= len(proto.pieces):
    special.append(_special(tokenizer.eot, sentences.EOT))
  model = (_unigram if proto.trainer_spec.model_type == UNIGRAM else _merges)(
    proto
  )
  return _whole(
    added_tokens=special,
    normalizer=_sequence("normalizers", _normalizers(proto, tokenizer)),
    pre_tokenizer=_blocks() if tokenizer.lossless else None,
    decoder=_sequence("decoders", _decoders(proto, tokenizer)),
    model=model,
  )


def _check_expressible(name: str, proto) -> None:
  trainer = proto.trainer_spec
  fault = ""
  if trainer.model_type not in (UNIGRAM, BPE):
    fault = "it is neither a BPE nor a unigram model"
  elif trainer.treat_whitespace_as_suffix:
    fault = "it marks spaces at the end of words"
  elif any(p.type == USER_DEFINED for p in proto.pieces):
    fault = "it has user-defined symbols"
  if fault:
    raise BadConfig(f"{name} cannot be written as tokenizer.json: {fault}")


def _sequence(key: str, parts: list[dict]) -> dict | None:
  return {"type": "Sequence", key: parts} if parts else None


def _replace(old: str, new: str) -> dict:
  return dict(type="Replace", pattern={"String": old}, content=new)


def _normalizers(proto, tokenizer) -> list[dict]:
  """What happens to text before it is cut into pieces."""
  spec = proto.normalizer_spec
  parts = []
  if tokenizer.lossless:
    # DLE first: the second escape brings new ones.
    parts += [_replace(c, sentences.ESCAPES[c]) for c in ("\x10", SPACE)]
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    parts.append(dict(type="Precompiled", precompiled_charsmap=charsmap))
  if spec.remove_extra_whitespaces:
    many = dict(type="Replace", pattern={"Regex": " {2,}"}, content=" ")
    parts += [dict(type="Strip", strip_left=True, strip_right=True), many]
  if spec.add_dummy_prefix:
    parts.append(dict(type="Prepend", prepend=SPACE))
  return parts + [_replace(" ", SPACE)]


def _blocks() -> dict:
  """The cut that is part of our tokenizer; a space is one character too."""
  return dict(
    type="Split",
    pattern={"Regex": sentences.BLOCK.pattern},
    behavior="Isolated",
    invert=False,
  )


def _decoders(proto, tokenizer) -> list[dict]:
  """Pieces to text, the inverse of the normalisers."""
  parts = [
    _replace(SPACE, " "),
    dict(type="ByteFallback"),
    dict(type="Fuse"),
  ]
  if tokenizer.lossless:
    # Doubled DLEs become DLE NUL, which no escape is, so that the next step
    # cannot take the second one for the beginning of an escape.
    parts += [
      _replace("\x10\x10", "\x10\x00"),
      _replace("\x10u", SPACE),
      _replace("\x10\x00", "\x10"),
    ]
  elif proto.normalizer_spec.add_dummy_prefix:
    parts.append(dict(type="Strip", content=" ", start=1, stop=0))
  return parts


def _merges(proto) -> dict:
  """BPE: the pieces, and every pair of pieces that makes a third.

  SentencePiece joins the pair whose result scores best, so a pair has the rank
  of its result.
  """
  vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
  normal = {p.piece: p.score for p in proto.pieces if p.type == NORMAL}
  pairs = [
    (-score, len(piece) - cut, piece[:cut], piece[cut:])
    for piece, score in normal.items()
    for cut in range(1, len(piece))
    if piece[:cut] in normal and piece[cut:] in normal
  ]
  unknown = next(p.piece for p in proto.pieces if p.type == UNKNOWN)
  return _bpe(
    vocab,
    [[left, right] for _, _, left, right in sorted(pairs)],
    unk_token=unknown,
    fuse_unk=True,
    byte_fallback=proto.trainer_spec.byte_fallback,
  )


def _unigram(proto) -> dict:
  return dict(
    type="Unigram",
    unk_id=next(i for i, p in enumerate(proto.pieces) if p.type == UNKNOWN),
    vocab=[[p.piece, p.score] for p in proto.pieces],
    byte_fallback=proto.trainer_spec.byte_fallback,
  )


# Verification.


def plain_class(
  made: dict[str, str], family: Family, more: dict[str, str]
) -> dict[str, str]:
  """The same files, naming the class that reads tokenizer.json as it is.

  more: special tokens that another class would have added by itself.
  """
  config = more | json.loads(made["tokenizer_config.json"])
  config = _kept_class(config | {"tokenizer_class": PLAIN}, family)
  return made | {"tokenizer_config.json": _json(config)}


@dataclasses.dataclass(frozen=True)
class Auto:
  """What transformers' AutoTokenizer makes of a folder.

  kind: the name of its class; apart: the texts, of `texts` compared, to which
  it gives other ids than ours; special: its special tokens by name,
  those that the tokenizer has.
  """

  kind: str
  apart: list[str]
  texts: int
  special: dict[str, str]


def auto(tokenizer, folder: Path, texts=PROBES + SPACED) -> Auto | None:
  """Reads a folder as its users will; None where transformers is missing.

  For some folders transformers 5 makes a tokenizer anew, by the class that
  the folder names, from no more of tokenizer.json than its pieces.
  """
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  try:
    from transformers import AutoTokenizer
  except ImportError:
    return None
  try:
    theirs = AutoTokenizer.from_pretrained(
      folder, local_files_only=True, trust_remote_code=False
    )
    special = {
      name: token
      for name, token in theirs.special_tokens_map.items()
      if isinstance(token, str) and theirs.vocab[token] < tokenizer.vocab
    }
    # Tokens that it looks for in a text are text to ours.
    words = [t.content for t in theirs.added_tokens_decoder.values()]
    texts = [text for text in texts if not any(w in text for w in words)]
    apart = [
      text
      for text in texts
      if theirs(text, add_special_tokens=False)["input_ids"]
      != tokenizer.encode(text).tolist()
    ]
  except Exception as error:  # whatever a class of theirs may raise
    return Auto(f"nothing ({str(error)[:200]})", list(texts), len(texts), {})
  return Auto(type(theirs).__name__, apart, len(texts), special)


def verify(tokenizer, made: dict[str, str], texts=PROBES) -> bool:
  """BadData where the files give other ids than the tokenizer does.

  False where the library is missing and nothing could be compared.
  """
  try:
    import tokenizers
  except ImportError:
    return False
  theirs = tokenizers.Tokenizer.from_str(made["tokenizer.json"])
  # A Hugging Face tokenizer finds its special tokens in a text, unless asked
  # not to; ours have no such way.
  theirs.encode_special_tokens = True
  for text in texts:
    found = theirs.encode(text, add_special_tokens=False).ids
    if found != tokenizer.encode(text).tolist():
      raise BadData(
        f"{tokenizer.name} as tokenizer.json gives other ids for "
        f"{text[:60]!r}: it cannot be exported"
      )
  return True
