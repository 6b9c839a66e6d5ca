"""What lies beside a tokenizer.json: special tokens, templates, where to stop.

Kept are known keys of known files, so that an export says what the folder
said. None of it changes the ids of a text, and none of it is executed.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadData

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENS = (
  "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
  "mask_token", "additional_special_tokens", "extra_special_tokens",
)  # fmt: skip
# What is kept of each file. Above all not auto_map, which names code, nor the
# names of other files.
KEYS = {
  "tokenizer_config.json": (
    *_TOKENS, "tokenizer_class", "added_tokens_decoder", "chat_template",
    "add_bos_token", "add_eos_token", "add_prefix_space", "backend", "errors",
    "clean_up_tokenization_spaces", "legacy", "model_input_names",
    "model_max_length", "model_specific_special_tokens", "padding_side",
    "spaces_between_special_tokens", "split_special_tokens", "truncation_side",
    "use_default_system_prompt",
  ),
  "special_tokens_map.json": _TOKENS,
  "generation_config.json": (
    *IDS, "do_sample", "max_length", "max_new_tokens", "min_p",
    "repetition_penalty", "temperature", "top_k", "top_p",
  ),
  "chat_template.json": ("chat_template",),
  "config.json": (
    *IDS, "model_type", "tokenizer_class", "max_position_embeddings",
  ),
}  # fmt: skip
TEMPLATE = "chat_template.jinja"


def read(folder: Path) -> dict[str, bytes]:
  """{file name: content} of what a folder says about its special tokens.

  Raises BadData for a file that is too large, no JSON object, or says what
  cannot be.
  """
  found = {}
  for name, keys in KEYS.items():
    path = folder / name
    if not os.path.lexists(path):
      continue
    values = files.parse_json(files.content(path), str(path), halves=True)
    values = {key: values[key] for key in keys if key in values}
    kind = values.get("tokenizer_class")
    if kind is not None and not (
      isinstance(kind, str) and re.fullmatch(r"\w+", kind)
    ):
      raise BadData(f"{path}: tokenizer_class={str(kind)[:80]!r}")
    for key in (*IDS, "max_position_embeddings"):
      _checked(path, key, values.get(key))
    if values:
      # Compact: indented, deep lists would grow beyond all bounds.
      found[name] = json.dumps(values).encode()
  if os.path.lexists(folder / TEMPLATE):
    found[TEMPLATE] = files.content(folder / TEMPLATE)
    try:
      found[TEMPLATE].decode()
    except UnicodeDecodeError:
      raise BadData(f"{folder / TEMPLATE} is not UTF-8") from None
  return found


def _checked(path: Path, key: str, value) -> None:
  """Raises BadData unless an id is a whole number, or several, or none."""
  ids = value if isinstance(value, list) else [value]
  if value is not None and not all(
    type(i) is int and abs(i) < 2**31 for i in ids
  ):
    raise BadData(
      f"{path}: {key}={str(value)[:80]}: expected a whole number or a list"
    )


def ids(beside: Mapping[str, bytes], eot: int, vocab: int) -> dict:
  """{bos_token_id, eos_token_id, ...: an id, several, or None}, as named.

  As transformers has it: by generation_config.json, else by config.json. Ids
  beyond the vocabulary are left out: configs of small models often have those
  of the family's large ones.
  """
  found: dict = {}
  for name in ("config.json", "generation_config.json"):
    for key, value in json.loads(beside.get(name, b"{}")).items():
      if key not in IDS:
        continue
      several = isinstance(value, list)
      legal = [i for i in (value if several else [value]) if _within(i, vocab)]
      if legal:
        found[key] = legal if several else legal[0]
      elif value is None:
        found.setdefault(key, None)
  if not found:
    return {"bos_token_id": eot, "eos_token_id": eot}
  return {"eos_token_id": eot} | found


def _within(i: int | None, vocab: int) -> bool:
  return i is not None and 0 <= i < vocab


def stops(tokenizer) -> tuple[int, ...]:
  """The ids that end a text: the end of text, and those the folder names."""
  named = tokenizer.special["eos_token_id"]
  named = named if isinstance(named, list) else [named]
  others = (i for i in named if i is not None)
  return tuple(dict.fromkeys((tokenizer.eot, *others)))
