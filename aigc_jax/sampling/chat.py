"""Messages as the one text that a chat model reads, by its folder's template.

A template is a program in jinja, by a stranger. It is run where it can do no
harm: by jinja's sandbox (https://jinja.palletsprojects.com/sandbox), whose
values cannot be changed and whose attributes cannot lead out, and in a process
of its own with bounded time and memory, as a template may count forever.
"""

import datetime
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aigc_jax.errors import BadConfig, BadData

LARGEST = 1 << 20  # characters of a template
LONGEST = 1 << 24  # characters of what it writes, of all conversations
MEMORY = 1 << 30  # bytes that its process may take
SECONDS = 20.0
NAMED = "chat_template.jinja"
Message = Mapping[str, str]  # {"role": ..., "content": ...}


def template_of(tokenizer) -> tuple[str, dict[str, str]]:
  """(the template of a tokenizer's folder, its special tokens by name).

  Raises BadConfig where the folder has none.
  """
  files = {} if tokenizer.kind != "hf" else tokenizer.beside
  said = json.loads(files.get("tokenizer_config.json", b"{}"))
  tokens = json.loads(files.get("special_tokens_map.json", b"{}")) | said
  names = {name: _content(tokens.get(name)) for name in tokens}
  words = {
    name: text
    for name, text in names.items()
    if name.endswith("_token") and text is not None
  }
  found = said.get("chat_template")
  if "chat_template.json" in files:
    found = json.loads(files["chat_template.json"]).get("chat_template")
  if NAMED in files:
    found = files[NAMED].decode()
  if isinstance(found, list):  # several by name
    named = [t for t in found if isinstance(t, dict)]
    default = [t for t in named if t.get("name") == "default"]
    found = default[-1].get("template") if default else None
  if not isinstance(found, str):
    raise BadConfig(
      f"the tokenizer {tokenizer.name} has no chat template: leave --chat "
      "out and write the prompt as the model was trained to read it"
    )
  return found, words


def _content(token) -> str | None:
  """A special token is a text, or an object with one."""
  token = token.get("content") if isinstance(token, dict) else token
  return token if isinstance(token, str) else None


def render(
  template: str,
  words: Mapping[str, str],
  conversations: Sequence[Sequence[Message]],
) -> list[str]:
  """What the model reads of each conversation, up to where it answers.

  Raises BadData where the template refuses, fails, or takes too much.
  """
  if len(template) > LARGEST:
    raise BadData(
      f"the chat template has {len(template)} characters: expected at most "
      f"{LARGEST}"
    )
  asked = dict(
    template=template, words=dict(words), conversations=list(conversations)
  )
  root = str(Path(__file__).parents[2])
  paths = [root, os.environ.get("PYTHONPATH", "")]
  try:
    done = subprocess.run(
      [sys.executable, "-m", "aigc_jax.sampling.chat"],
      input=json.dumps(asked).encode(), capture_output=True, timeout=SECONDS,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    raise BadData(
      f"the chat template was not done after {SECONDS:.0f} seconds"
    ) from None
  if done.returncode:
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    raise BadData(f"the chat template failed: {''.join(last)[:400]}")
  found = json.loads(done.stdout)
  if "lacking" in found:
    raise BadConfig(found["lacking"])
  if "fault" in found:
    raise BadData(f"the chat template refuses: {found['fault'][:400]}")
  return found["texts"]


def environment():
  """What templates are written for: jinja as transformers sets it up."""
  import jinja2
  from jinja2.ext import Extension, loopcontrols
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(Extension):
    """{% generation %} marks what a model is trained on; here, nothing."""

    tags = {"generation"}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(["name:endgeneration"], drop_needle=True)

  def refuse(message):
    raise jinja2.TemplateError(message)

  def as_json(value, ensure_ascii=False, indent=None, sort_keys=False, **more):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys,
      separators=more.get("separators"),
    )  # fmt: skip

  made = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
  )
  made.filters["tojson"] = as_json
  made.globals["raise_exception"] = refuse
  made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(
    form
  )
  return made


def written(asked: Mapping) -> dict:
  """The answer to what `render` asks, in the process of its own."""
  try:
    import jinja2
  except ImportError:
    return {"lacking": "--chat needs jinja2: pip install 'aigc_jax[hf]'"}
  texts, room = [], LONGEST
  try:
    template = environment().from_string(asked["template"])
    for messages in asked["conversations"]:
      parts = []
      for part in template.generate(
        messages=messages, add_generation_prompt=True, tools=None,
        documents=None, **asked["words"],
      ):  # fmt: skip
        parts.append(part)
        room -= len(part)
        if room < 0:
          return {"fault": f"it writes more than {LONGEST} characters"}
      texts.append("".join(parts))
  except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as e:
    return {"fault": f"{type(e).__name__}: {e}"}
  except (LookupError, AttributeError, RecursionError, MemoryError) as e:
    return {"fault": f"{type(e).__name__}: {e}"}
  return {"texts": texts}


if __name__ == "__main__":
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 1,) * 2)
  json.dump(written(json.load(sys.stdin)), sys.stdout)
