"""Command lines that pages and docstrings print work as they are typed."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from aigc_jax import command, run
from tests import commands

ROOT = Path(__file__).parents[1]
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(python -m aigc_jax\.[^`]+)`")
TYPED = re.compile(r"^ *(?:[A-Z_]+=\S+ )?python -m aigc_jax\b.*$", re.MULTILINE)
# Names in capitals stand for what one has: DIR, FILE.jsonl, hf:FOLDER, C.py.
# What is in runs/ is made by a line before.
STANDS_FOR = re.compile(r"\b[A-Z]{3,}\b|\bC\.py|\.\.\.|\{|:runs/")


def sources() -> dict[str, str]:
  """{name: what is printed} of all pages, and of docstrings as they stand."""
  pages = [ROOT / "README.md", ROOT / "configs/README.md"]
  pages += sorted(ROOT.glob("aigc_jax/**/README.md"))
  pages += sorted(ROOT.glob("experiments/**/README.md"))
  found = {str(p.relative_to(ROOT)): p.read_text() for p in pages}
  for folder in ("configs/*.py", "aigc_jax/*.py", "experiments/**/*.py"):
    for path in sorted(ROOT.glob(folder)):
      text = path.read_text()
      node = ast.parse(text).body[:1]
      if node and isinstance(node[0], ast.Expr):
        lines = text.split("\n")[: node[0].end_lineno]
        found[str(path.relative_to(ROOT))] = "\n".join(lines)
  return found


SOURCES = sources()


def typed(name: str, text: str) -> list[list[str]]:
  """The words of each command line of ours, as a shell would read them."""
  if name.endswith(".md"):
    lines = [line for block in SHELL.findall(text) for line in _lines(block)]
    lines += [line.replace("\n", " ") for line in INLINE.findall(text)]
  else:
    lines = _lines(text)
  found = []
  for line in lines:
    line = line.partition("&&")[2].strip() or line.strip()
    if TYPED.match(line):
      found.append(shlex.split(line, comments=True))
  return found


def _lines(text: str) -> list[str]:
  """Lines, each with those that a backslash at its end goes on with."""
  return re.sub(r"(?<!\\)\\\n", " ", text).split("\n")


def test_no_page_hides_its_command_lines_from_this_test():
  found = {name: len(typed(name, text)) for name, text in SOURCES.items()}
  assert found["README.md"] > 20 and found["configs/dalle.py"] == 5
  assert sum(found.values()) > 150


@pytest.mark.parametrize(
  "name", [name for name, text in SOURCES.items() if typed(name, text)]
)
def test_a_printed_command_is_one(name, monkeypatch):
  """Its module and flags are there, its config and keys are taken."""
  monkeypatch.chdir(ROOT)
  for words in typed(name, SOURCES[name]):
    while "=" in words[0]:
      words = words[1:]
    check(words[2].removeprefix("aigc_jax."), words[3:])


def check(module: str, words: list[str]) -> None:
  """Fails where a command knows none of its flags, or its config no key."""
  if module == "lm_eval":
    return  # another package's flags
  config, settings = "", []
  with pytest.MonkeyPatch.context() as patch:
    values = commands.own_flags(patch)
    importlib.import_module(f"aigc_jax.{module}").define_flags()
    known = {*values, "config", "with", *command.TOGETHER}
  for word in words:
    if not word.startswith("--"):
      assert word.strip("\\"), words
      continue
    flag, _, value = word.removeprefix("--").partition("=")
    if flag.startswith("config."):
      settings.append((flag.removeprefix("config."), value))
    else:
      assert flag in known or flag.removeprefix("no") in known, (word, module)
    if flag == "config":
      config = value
  if config and not STANDS_FOR.search(config):
    settings = [pair for pair in settings if not STANDS_FOR.search(pair[1])]
    run.configured(config, settings)


def test_docstrings_read_alike_in_the_file_and_in_help():
  """A backslash that is escaped in the one would be typed twice."""
  for name, text in SOURCES.items():
    if name.endswith(".py"):
      for words in typed(name, ast.get_docstring(ast.parse(text)) or ""):
        assert words in typed(name, text), name
