"""House rules: import order, one file for mesh words, configs at the edge."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "aigc_jax"
PARTS = (
  "errors signature presets files records terminal early native memory outages "
  "tree metrics chips sharding layers models flops objectives data optim "
  "trainer sampling evaluators hf run planning scaling command timing"
).split()
FILES = sorted(PACKAGE.rglob("*.py"))
MESH_WORDS = {"fsdp", "tensor", "pipeline"}
EMPTY_NAMES = {"utils", "common", "helpers", "misc", "base", "lib", "types"}


def part_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
  """A file, which is read once for all rules."""
  return ast.parse(path.read_text())


@functools.cache
def nodes(path: pathlib.Path) -> list[ast.AST]:
  return list(ast.walk(parsed(path)))


def imported(path: pathlib.Path):
  """(part, line) of each import from the package, also inside functions."""
  for node in nodes(path):
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: a relative import"
      names = [node.module]
      if node.module == "aigc_jax":
        names = [f"aigc_jax.{a.name}" for a in node.names]
    elif isinstance(node, ast.Import):
      names = [a.name for a in node.names]
    else:
      continue
    for name in names:
      if name.split(".")[0] == "aigc_jax" and "." in name:
        yield name.split(".")[1], node.lineno


def order(part: str) -> int:
  """Where a part stands; the commands stand last, all in one place."""
  return PARTS.index(part) if part in PARTS else len(PARTS)


@pytest.mark.parametrize("page", ["README.md", "aigc_jax/__init__.py"])
def test_the_map_of_the_package_has_every_part_in_order(page):
  text = (ROOT / page).read_text()
  listed = re.findall(r"^  (\w+) {2,}\w", text, re.MULTILINE)
  assert listed[: len(PARTS)] == PARTS
  told = text.partition("  timing ")[2].partition("commands")[2].lstrip(": ")
  commands = re.split(r"\.|```", told)[0].split()
  there = {path.stem for path in PACKAGE.iterdir() if path.stem.isidentifier()}
  assert sorted(commands) == sorted(there - {*PARTS, "__init__", "__pycache__"})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_part_imports_only_what_stands_before_it(path):
  part = part_of(path)
  if part == "__init__":
    return
  for other, line in imported(path):
    if other == part:
      continue
    assert order(other) < order(part), f"{path}:{line}: {part} <- {other}"
    if part == "objectives":
      assert other != "models", f"{path}:{line}"
    if part == "data":
      assert other not in ("layers", "models", "objectives"), f"{path}:{line}"


def test_every_part_in_the_order_exists():
  assert set(PARTS) <= {part_of(path) for path in FILES}


def test_what_is_not_in_the_order_is_a_command_a_file_at_the_top():
  for path in FILES:
    assert part_of(path) in PARTS or path.parent == PACKAGE, (
      f"{path}: its folder has no place in the order of imports"
    )


def strings(path: pathlib.Path):
  docs = set()
  for node in nodes(path):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      docs.add(id(body[0].value))
  for node in nodes(path):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      if id(node) not in docs:
        yield node.value, node.lineno


def test_mesh_axis_names_occur_in_sharding_only():
  for path in FILES:
    if path.name == "sharding.py":
      continue
    for value, line in strings(path):
      assert value not in MESH_WORDS, f"{path}:{line}: {value!r}"


def test_only_run_reads_a_config_dict():
  for path in FILES:
    if part_of(path) in ("run", "presets"):
      continue
    used = [n for n in nodes(path) if isinstance(n, ast.Name)]
    assert "ConfigDict" not in {n.id for n in used}, path
    # A config.json from elsewhere is not ours and may lack anything.
    if part_of(path) != "hf":
      assert "config.get(" not in path.read_text(), path


def test_nothing_imports_configs_or_experiments():
  for path in FILES:
    for node in nodes(path):
      if isinstance(node, ast.ImportFrom):
        assert node.module.split(".")[0] not in ("configs", "experiments"), path


def test_configs_import_only_presets_each_other_and_ml_collections():
  presets = (PACKAGE / "presets").rglob("*.py")
  for path in [*(ROOT / "configs").rglob("*.py"), *presets]:
    for node in nodes(path):
      names = []
      if isinstance(node, ast.ImportFrom):
        names = [node.module]
      elif isinstance(node, ast.Import):
        names = [a.name for a in node.names]
      for name in names:
        known = name.split(".")[0] in ("configs", "ml_collections", "difflib")
        assert known or name.startswith("aigc_jax.presets"), path


def test_no_file_has_a_name_that_says_nothing():
  for path in PACKAGE.rglob("*"):
    assert path.stem not in EMPTY_NAMES, path


def test_nothing_executes_data():
  banned = {"pickle", "marshal", "shelve", "dill", "joblib"}
  for path in FILES:
    for node in nodes(path):
      if isinstance(node, ast.Import):
        assert not banned & {a.name.split(".")[0] for a in node.names}, path
      if isinstance(node, ast.ImportFrom):
        assert node.module.split(".")[0] not in banned, path
      if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
          assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
        for word in node.keywords:
          risky = word.arg in ("allow_pickle", "shell")
          if risky and isinstance(word.value, ast.Constant):
            assert word.value.value is not True, f"{path}:{node.lineno}"


# What reads files for us, and where it may: each of them was read for ways in
# which a file could choose code. TFDS imports classes by name, so its folders
# are checked first (data/tfds_folders.py); Orbax is told its handler; numpy
# never unpickles; tokenizers, SentencePiece and pyarrow only parse.
READERS = {
  "builder_from_directory": {"data/sources.py"},
  "as_data_source": {"data/sources.py"},
  "builder": {"data/sources.py"},  # of TFDS's own catalogue, on --download
  "from_buffer": {"data/tokenizers.py"},
  "SentencePieceProcessor": {"data/sentences.py"},
  "ParquetFile": {"data/rows.py"},
  "PyTreeCheckpointHandler": {"trainer/arrays.py"},
  "ConfigFileFlagParser": set(),  # executes whatever it is given
  "builder_from_files": set(),
  "import_module": set(),
  "__import__": set(),
  "from_pretrained": {"hf/vocabulary.py"},  # of an export of ours
  "from_file": set(),
  "load_source": set(),
  "spec_from_file_location": {"run/script.py"},  # --config=PATH.py, a *.py
  "deserialize_and_load": set(),
  "open_memmap": set(),
  "memmap": {"hf/safetensors.py"},
  "unsafe_load": set(),
}


def test_only_these_readers_open_what_others_wrote():
  for path in FILES:
    name = path.relative_to(PACKAGE).as_posix()
    for node in nodes(path):
      if isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        allowed = READERS.get(called, {name})
        assert name in allowed, f"{path}:{node.lineno}: {called}"
        given = {word.arg: word.value for word in node.keywords}
        place = f"{path}:{node.lineno}"
        if remote := given.get("trust_remote_code"):
          assert ast.unparse(remote) == "False", place
        if called == "load" and ast.unparse(node.func) in (
          "np.load", "numpy.load",
        ):  # fmt: skip
          pickled = given.get("allow_pickle")
          assert pickled and ast.unparse(pickled) == "False", place


def test_a_folder_of_tfds_is_checked_before_it_is_opened():
  tree = ast.parse((PACKAGE / "data/sources.py").read_text())
  for function in ast.walk(tree):
    if isinstance(function, ast.FunctionDef):
      text = ast.unparse(function)
      if "builder_from_directory(" in text:
        before = text.split("builder_from_directory(")[0]
        assert "check_folder(self.folder)" in before, function.name


# What no line of the README has installed before its tests.
OPTIONAL = (
  "diffusers jiwer lm_eval nltk rouge_score sacrebleu sklearn torch "
  "torchvision transformers"
).split()


@pytest.mark.parametrize(
  "path",
  sorted((ROOT / "tests").rglob("test_*.py")),
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_what_may_not_be_installed_is_asked_for_before_it_is_imported(path):
  asked = set()
  for statement in parsed(path).body:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
      continue
    for node in ast.walk(statement):
      if isinstance(node, ast.Call) and "importorskip" in ast.unparse(
        node.func
      ):
        asked.add(ast.literal_eval(node.args[0]).split(".")[0])
    names = [getattr(statement, "module", None) or ""]
    if isinstance(statement, ast.Import):
      names = [alias.name for alias in statement.names]
    missing = {name.split(".")[0] for name in names} & set(OPTIONAL) - asked
    assert not missing, f"{path}:{statement.lineno}: {missing}"


def test_files_of_tests_may_have_one_name_in_two_folders():
  """pytest tells modules apart by their packages alone."""
  folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
  assert [f for f in folders if not (f / "__init__.py").exists()] == []


def test_no_docstring_has_a_backslash_that_a_shell_would_see_twice():
  """A command line in it is copied from the file: a raw string has one."""
  folders = (PACKAGE, ROOT / "configs", ROOT / "experiments")
  for path in (p for folder in folders for p in folder.rglob("*.py")):
    head = path.read_text().partition('"""')[2].partition('"""')[0]
    assert "\\\\\n" not in head, path


def test_what_is_told_is_in_the_singular_or_in_the_plural():
  # terminal.counted says "1 step" and "2 steps".
  both = [
    f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:60]!r}"
    for path in FILES
    for node in nodes(path)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
    if re.search(r"[a-z]{3}\((s|es)\)", node.value)
  ]
  assert not both, both
