"""The parts of README files that are made from the code.

  python -m tests.pages

writes them between their marks anew; tests/test_pages.py holds them equal.
"""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

from aigc_jax import errors
from aigc_jax.evaluators.formats import FORMATS
from aigc_jax.presets import keys

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def config_keys() -> str:
  """Every key of the skeleton with its default and its comment."""
  source = inspect.getsource(keys)
  lines = source.splitlines()
  comments = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }

  def alone(line: int) -> bool:
    return line in comments and lines[line - 1].lstrip().startswith("#")

  def meaning(first: int, last: int) -> str:
    above, line = [], first - 1
    while alone(line):
      above.insert(0, comments[line])
      line -= 1
    beside = [comments[n] for n in (first, last) if n in comments]
    return " ".join([*above, *dict.fromkeys(beside)])

  rows = []

  def visit(
    name: str, node: ast.expr, first: int, top: bool, said: str
  ) -> None:
    said = meaning(first, node.end_lineno) or said
    called = isinstance(node, ast.Call)
    if called and (top or node.end_lineno > node.lineno):
      for word in node.keywords:
        visit(f"{name}.{word.arg}", word.value, word.lineno, False, said)
      return
    default = " ".join(ast.unparse(node).split())
    rows.append((f"`{name}`", f"`{default}`", said))

  (function,) = (
    n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)
  )
  for node in function.body:
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    if isinstance(target, ast.Attribute):
      visit(target.attr, node.value, node.lineno, True, "")
  return table(("key", "default", "meaning"), rows)


def exit_codes() -> str:
  """Each exit status with what it means, from the refusals."""
  rows = [("0", "done", "")]
  for name, kind in vars(errors).items():
    if inspect.isclass(kind) and kind.__module__ == errors.__name__:
      if kind is not errors.Refusal:
        rows.append((str(kind.code), inspect.getdoc(kind), f"`{name}`"))
  rows = sorted(rows, key=lambda row: int(row[0]))
  rows.append(("130", "interrupted at the keyboard", ""))
  return table(("status", "meaning", "in the code"), rows)


def task_formats() -> str:
  """The formats of tasks, in the order in which they are tried."""
  rows = [
    (name, ", ".join(f"`{key}`" for key in f.keys), f.scores, f.source)
    for name, f in FORMATS.items()
  ]
  return table(("format", "known by its keys", "scores", "source"), rows)


MADE = {
  "config_keys": config_keys,
  "exit_codes": exit_codes,
  "task_formats": task_formats,
}
PAGES = (
  "configs/README.md", "aigc_jax/trainer/README.md",
  "aigc_jax/evaluators/README.md",
)  # fmt: skip


def table(header: tuple, rows: list[tuple]) -> str:
  """A table in Markdown."""
  lines = [header, ("---",) * len(header), *rows]
  escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
  return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def made(text: str) -> str:
  """A page with its parts made anew."""
  return MARK.sub(lambda m: m[1] + MADE[m[2]]() + m[3], text)


if __name__ == "__main__":
  for page in PAGES:
    path = ROOT / page
    path.write_text(made(path.read_text()))
