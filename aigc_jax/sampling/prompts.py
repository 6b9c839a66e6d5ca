"""Prompts from the line of a command or a file: texts, or conversations."""

import json
import sys

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData

LARGEST = 2**28  # bytes of a file of prompts


def prompts_of(given: list[str], file: str, chats: bool = False) -> list:
  """The prompts of the flags; one empty one where there are none.

  With `chats` each is a list of messages, and a text is one of a user.
  """
  found = _given(given, file, chats)
  if not chats:
    return found
  if not file and "" in found:
    raise BadConfig(
      "--chat answers a message, and there is none: add --prompt='Hi!'"
    )
  return [
    [{"role": "user", "content": p}] if isinstance(p, str) else p for p in found
  ]


def _given(given: list[str], file: str, chats: bool) -> list:
  if given and file:
    raise BadConfig("--prompt and --prompts_file: give one of them")
  if not file:
    return list(given) or [""]
  if file == "-":
    with files.told("--prompts_file=-"):
      text = sys.stdin.read()
  else:
    text = files.given_text(file, LARGEST, "--prompts_file")
  text = text.removeprefix("\ufeff")  # what some editors put first
  lines = text.split("\n")
  lines = lines[:-1] if lines[-1] == "" else lines
  if file.endswith(".jsonl") or text.lstrip().startswith('{"'):
    records = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    lines = [_prompt(file, n, line, chats) for n, line in records]
  else:
    lines = [line.removesuffix("\r") for line in lines]
  if not lines:
    raise BadData(f"--prompts_file={file}: no prompt in it")
  return lines


def _prompt(file: str, number: int, line: str, chats: bool) -> str | list:
  try:
    record = json.loads(line)
    json.dumps(record, ensure_ascii=False).encode()  # no half characters
    if chats and "messages" in record:
      return _messages(record["messages"])
    prompt = record["prompt"]
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    prompt = None
  if not isinstance(prompt, str):
    more = ""
    if chats:
      more = ' or {"messages": [{"role": "user", "content": "..."}, ...]}'
    raise BadData(f'{file}, line {number}: expected {{"prompt": "..."}}{more}')
  return prompt


def _messages(found) -> list[dict[str, str]]:
  """A conversation; ValueError where it is none."""
  if not isinstance(found, list) or not found:
    raise ValueError
  for message in found:
    if not all(isinstance(message[key], str) for key in ("role", "content")):
      raise ValueError
  return found
