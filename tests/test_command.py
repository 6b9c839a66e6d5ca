"""What the commands share: which configs are read, and which are executed."""

import errno
import json
import os
import shlex
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from aigc_jax import (
  command,
  early,
  export,
  files,
  outages,
  run,
  sweep,
  train,
)
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.scaling import soup
from configs import quickstart
from tests import commands
from tests.sweep import slow

TRAP = "open({!r}, 'w').close()\n"


def parsed(*words):
  """The config that these words of a command line give."""
  argv = ["command", *map(str, words)]
  values = flags.FlagValues()
  command.define_config(values)
  command.parsed(values, argv)
  return values.config


@pytest.fixture
def kept(tmp_path):
  """config.json as training leaves it."""
  path = tmp_path / "config.json"
  path.write_text(json.dumps(run.read(quickstart.get_config())))
  return path


def test_the_config_of_a_run_is_read_as_data_and_says_the_same(kept):
  config = parsed(f"--config={kept}")
  assert run.read(config) == run.read(quickstart.get_config())


def test_flags_change_a_config_that_was_read(kept):
  config = run.read(
    parsed(
      f"--config={kept}",
      "--config.optim.decay_steps=7",
      "--config.data.path=/x",
      "--config.data.skip_steps=(3, 4)",
    )  # fmt: skip
  )
  assert config["data"]["path"] == "/x"
  assert config["data"]["skip_steps"] == [3, 4]
  assert config["optim"]["decay_steps"] == 7
  with pytest.raises(BadConfig, match="bach"):
    parsed(f"--config={kept}", "--config.data.bach=3")


@pytest.mark.parametrize("name", ["config.json", "config", "x.txt", "x.PY"])
def test_nothing_but_python_files_is_executed(tmp_path, name):
  trap = tmp_path / "executed"
  path = tmp_path / name
  path.write_text(TRAP.format(str(trap)) + "def get_config(): return {}\n")
  for words in (
    [f"--config={path}"],
    ["--config", path],
    [f"-config={path}:x"],
  ):
    with pytest.raises(BadConfig, match=str(path)):
      parsed(*words)
  assert not trap.exists()


def test_a_config_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(BadConfig, match="pipe"):
    parsed(f"--config={tmp_path / 'config.json'}")


SAYING = """
import sys
from aigc_jax import command
from tests import commands
def main():
  print("said")
sys.argv = ["command", *sys.argv[1:]]
command.main(main)
"""


def said(way: str, *argv: str, **environ: str) -> subprocess.CompletedProcess:
  """A command that says one line, run by a shell with its streams changed."""
  words = [sys.executable, "-c", SAYING, *argv]
  return subprocess.run(
    f"{shlex.join(words)} {way}", shell=True, text=True, capture_output=True,
    env=os.environ | environ, errors="replace",
  )  # fmt: skip


IMPORTING = """
import gc
from aigc_jax import early
early.begin(["python", "-m", "aigc_jax.report"], [])
before = gc.isenabled(), gc.get_freeze_count() > 0
early.imported()
print(*before, gc.isenabled(), gc.get_freeze_count() > 0)
"""


def test_garbage_is_looked_for_once_all_is_imported_and_not_among_it():
  found = subprocess.run(
    [sys.executable, "-c", IMPORTING], capture_output=True, text=True
  )
  assert found.stdout.split() == ["False", "False", "True", "True"]


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_told_and_closed_ones_are_not():
  full = said("> /dev/full")
  assert full.returncode == 74 and "No space left" in full.stderr
  assert "Traceback" not in full.stderr and "ignored" not in full.stderr
  closed = said(">&- 2>&-")
  assert closed.returncode == 0


@pytest.mark.slow
def test_an_argument_that_is_not_utf_8_is_refused_before_any_work():
  refused = said("--x=$(printf 'a\\377')")
  assert refused.returncode == 78 and "is not UTF-8" in refused.stderr
  assert "\\udcff" in refused.stderr


@pytest.mark.parametrize(
  "name",
  ["config.json", "config.before-6.json", "run.6.json", "result.json", "LOCK",
   "metrics.jsonl", "metrics.cut.jsonl", "STOP", "checkpoints/7/x.json",
   "checkpoints/x.json", "tokenizer/x.json"],
)  # fmt: skip
def test_nothing_is_written_over_or_into_what_a_run_keeps(tmp_path, name):
  workdir = tmp_path / "run"
  (workdir / "checkpoints" / "7").mkdir(parents=True)
  (workdir / "tokenizer").mkdir()
  out = workdir / name
  command.check_out(out)  # no run is there yet
  for record in ("config.json", "run.json"):
    (workdir / record).touch()
  (tmp_path / "link").symlink_to(workdir)
  for place in (out, tmp_path / "link" / name):
    with pytest.raises(BadConfig, match="what the run in .*run keeps"):
      command.check_out(place)
  for free in ("scores.json", "hf", "evaluate/6.json", "samples/x.png"):
    run.check_out(workdir / free)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/7"])
def test_no_folder_is_made_where_a_run_keeps_its_checkpoints(tmp_path, name):
  (tmp_path / "checkpoints").mkdir()
  for record in ("config.json", "run.json"):
    (tmp_path / record).touch()
  for check in (export._check_new, soup.check_new, sweep._check_out):
    with pytest.raises(BadConfig, match="--out=.* keeps for itself"):
      check(tmp_path / name)
  with pytest.raises(BadConfig, match="--workdir=.* keeps for itself"):
    train._make(tmp_path / name)
  assert not (tmp_path / "checkpoints" / "7").exists()


def test_devices_that_are_not_there_are_named_with_a_way_out(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "banana")
  with pytest.raises(RuntimeError) as told:
    jax._src.xla_bridge._init_backend("banana")
  refusal = outages.of_the_machine(told.value)
  assert refusal.code == 78 and "'banana'" in str(refusal)
  assert outages.of_the_machine(ValueError("x")) is None


def test_a_memory_that_is_full_is_told_with_what_takes_less_of_it():
  """As of a batch that is too large for a GPU."""
  with pytest.raises(jax.errors.JaxRuntimeError) as told:
    jax.block_until_ready(jnp.zeros(2**50, "uint8"))  # a PiB
  for error in (told.value, MemoryError()):
    refusal = outages.of_the_machine(error)
    assert refusal.code == 78 and "memory does not suffice" in str(refusal)
    assert "--config.data.batch" in str(refusal) and "\n" not in str(refusal)
  other = jax.errors.JaxRuntimeError("INTERNAL: a fault of ours")
  assert outages.of_the_machine(other) is None


def test_what_a_file_system_refuses_is_told_by_the_name_of_the_file():
  for number in (errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG):
    error = OSError(number, os.strerror(number), "/data/x.csv")
    refusal = outages.of_the_machine(error)
    assert refusal.code == 74
    assert str(refusal).startswith(f"/data/x.csv: {os.strerror(number)}: ")
  gone = OSError(errno.ENOENT, "No such file", "/data/x.csv")
  assert outages.of_the_machine(gone) is None  # that is to be looked for


OTHERWISE = {
  "jax_enable_x64": True, "jax_numpy_rank_promotion": "raise",
  "jax_numpy_dtype_promotion": "strict", "jax_transfer_guard": "disallow",
  "jax_debug_nans": True, "jax_debug_infs": True, "jax_disable_jit": True,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_settings_of_jax_for_another_program_are_put_right(name):
  before = jax.config.values[name]
  try:
    jax.config.update(name, OTHERWISE[name])
    assert command.settle_jax() == [name]
    assert jax.config.values[name] == command.SETTINGS[name]
    assert command.settle_jax() == []
  finally:
    jax.config.update(name, before)


GONE = """
import os, runpy, sys
os.rmdir(os.getcwd())
sys.argv = ["-m"]  # as it is while Python imports the package
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["aigc_jax.train", "aigc_jax.report"])
def test_a_folder_that_is_gone_is_named(tmp_path, module):
  folder = tmp_path / "gone"
  folder.mkdir()
  root = os.path.dirname(os.path.dirname(command.__file__))
  found = subprocess.run(
    [sys.executable, "-c", GONE.format(module=module)], cwd=folder,
    env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True,
    timeout=120,
  )  # fmt: skip
  assert found.returncode == 74
  assert found.stderr.startswith("aigc_jax: the folder that this command was")
  assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_warning_is_said_once():
  done = commands.run(
    "aigc_jax.train", "--config=configs/quickstart.py", "--config.steps=20",
    "--config.optim.warmup_steps=100", "--dry_run",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("never leaves the warm-up") == 1, done.stderr


@pytest.mark.parametrize(
  "words", [slow(["--help"]), ["--batch=x", "--helpfull"]]
)
def test_help_that_was_asked_for_is_no_failure(words):
  done = commands.run("aigc_jax.generate", *words)
  assert done.returncode == 0, done.stderr
  for text in (
    "--prompt:",
    "--grid=4x8",
    "--words:",
    "--with:",
    "--processes:",
  ):
    assert text in done.stdout


def test_a_word_that_only_looks_like_help_is_a_fault():
  assert commands.run("aigc_jax.generate", "--halp").returncode == 78


def test_a_flag_that_is_none_is_told_what_may_have_been_meant():
  for word, meant in (
    ("--greedy", "there is --temperature: 0 takes the likeliest"),
    ("--max_new_tokens=3", "did you mean '--max_tokens'?"),
  ):
    done = commands.run("aigc_jax.generate", word)
    assert done.returncode == 78 and meant in done.stderr, done.stderr


def test_an_axis_that_is_none_is_refused_before_a_run_is_read():
  done = commands.run("aigc_jax.report", "curve", "no/run", "--log=z")
  assert done.returncode == 78 and "--log=z: expected" in done.stderr


def test_a_word_that_is_no_number_is_told_without_pythons_words():
  for word, what, of in (
    ("--batch=x", "a whole number", "(rows scored together)"),
    ("--guidance=x", "a number", "(towards labels"),
  ):
    done = commands.run("aigc_jax.evaluate", word)
    assert done.returncode == 78 and f"{word}: expected {what}" in done.stderr
    assert of in done.stderr  # what the flag counts, so that one knows
    assert "literal" not in done.stderr and "convert" not in done.stderr


EARLY = """
import os, signal, sys
# A shell starts what runs behind it with SIGINT ignored, tests too.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "-m"
sys.orig_argv = ["python", "-m", "aigc_jax.{}", *sys.argv[1:]]
import aigc_jax
assert not {{"jax", "numpy", "absl"}} & set(sys.modules)
os.kill(os.getpid(), 2)
"""


@pytest.mark.parametrize(
  ("name", "words", "told"),
  [
    ("export", ["--out=x", "--workdir=runs/a"], ["starting ..."]),
    ("generate", ["--workdir", "hf:\x1b[2J"], ["starting ..."]),
    ("evaluate", ["--workdir=a", "--help"], []),
    ("report", ["curve", "runs/a"], []),
  ],
)
def test_the_first_word_comes_and_ctrl_c_is_heard_before_anything_is_imported(
  name, words, told
):
  run = subprocess.run(
    [sys.executable, "-c", EARLY.format(name), *words], capture_output=True,
    text=True, timeout=600,
  )  # fmt: skip
  assert run.stderr.splitlines() == [*told, "aigc_jax: interrupted"]
  assert run.returncode == 130


LATE = """
import os, signal, sys
sys.argv[0] = "-m"
sys.orig_argv = ["python", "-m", "aigc_jax.train"]
import aigc_jax
number = int(sys.argv[1])
signal.signal(number, lambda *_: None)

class Last:
  def __del__(self, os=os, number=number):
    os.write(1, b"last of all")
    os.kill(os.getpid(), number)

last = Last()
sys.exit(75)
"""


@pytest.mark.parametrize("number", [2, 15])
def test_a_wish_to_stop_at_the_very_end_changes_no_status(number):
  line = [sys.executable, "-c", LATE, str(number)]
  run = subprocess.run(line, capture_output=True, text=True, timeout=600)
  assert (run.returncode, run.stdout) == (75, "last of all"), run.stderr


@pytest.mark.parametrize(
  ("name", "value"),
  [("JAX_DEBUG_NANS", "maybe"), ("JAX_DEFAULT_MATMUL_PRECISION", "nonsense")],
)
def test_a_setting_of_jax_that_is_none_is_refused_by_name(name, value):
  run = subprocess.run(
    [sys.executable, "-m", "aigc_jax.generate"], capture_output=True, text=True,
    env=os.environ | {name: value}, timeout=600,
  )  # fmt: skip
  assert run.returncode == BadConfig.code
  (line,) = run.stderr.splitlines()
  assert value in line and name in line.upper() and "unset it" in line


def test_a_memory_too_small_to_begin_is_told(monkeypatch, capfd):
  left = []
  monkeypatch.setattr(os, "_exit", left.append)
  for error in (MemoryError(), ImportError("x.so: failed to map segment")):
    early._not_begun(type(error), error, None)
  assert left == [BadConfig.code] * 2
  assert capfd.readouterr().err.count("the memory does not even suffice") == 2


def test_a_full_disk_is_told_with_what_to_do_by_whoever_finds_it(
  tmp_path, monkeypatch, capfd
):
  way = "make room there, then run the same line again"

  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def told(act) -> str:
    own = commands.own_flags(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["aigc_jax"])
    monkeypatch.setattr(command, "start_jax", lambda alone: None)
    monkeypatch.setattr(command.terminal, "guard", lambda: None)
    monkeypatch.setattr(command.terminal, "settled", lambda status: status)
    monkeypatch.setattr(command.flags, "FLAGS", own)
    monkeypatch.setattr(command.app, "run", lambda main, **_: main([""]))
    with pytest.raises(SystemExit) as end:
      command.main(act)
    assert end.value.code == StorageFailure.code
    return capfd.readouterr().err

  monkeypatch.setattr(files.os, "fsync", full)
  said = told(lambda: files.write_json(tmp_path / "config.json", {}))
  assert said.endswith(f"No space left on device: {way}\n")

  def stored():
    with files.storage(tmp_path, "choose another --out, or make room"):
      full()

  assert way not in told(stored)


@pytest.mark.parametrize(
  "given, why",
  [
    ("--xla_nonsense=3", "Unknown flag in XLA_FLAGS: --xla_nonsense=3"),
    ("nonsense", 'Could not open file "nonsense"'),
    ("--xla_backend_optimization_level=x", "Couldn't interpret value x"),
  ],
)
def test_flags_that_xla_ends_a_process_for_are_refused_before(
  tmp_path, given, why
):
  found = commands.run(
    "aigc_jax.evaluate", f"--workdir={tmp_path}", environ={"XLA_FLAGS": given}
  )
  assert found.returncode == BadConfig.code
  assert f"aigc_jax: XLA cannot read the variable XLA_FLAGS={given!r}" in (
    found.stderr
  )
  assert why in found.stderr and "holds no run" not in found.stderr


@pytest.mark.parametrize("named", [False, True])
def test_a_place_for_compiled_programs_that_is_none_is_told_and_not_used(
  tmp_path, named
):
  (tmp_path / "file").touch()
  where = str(tmp_path / "file")
  found = commands.run(
    "aigc_jax.evaluate", f"--workdir={tmp_path}",
    environ={
      "HOME": where, "JAX_COMPILATION_CACHE_DIR": f"{where}/x" if named else "",
    },
  )  # fmt: skip
  assert "aigc_jax: compiled programs are not kept" in found.stderr
  assert "cannot be written (Not a directory)" in found.stderr
  assert "JAX_COMPILATION_CACHE_DIR=FOLDER" in found.stderr


def test_a_user_without_a_home_goes_without_compiled_programs(monkeypatch):
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  assert "has no home folder here" in outages.unusable(command.COMPILED)
  assert not outages.unusable("gs://bucket/compiled")


def test_what_cannot_be_kept_of_compiled_programs_is_said_once(
  monkeypatch, capfd
):
  told = []
  monkeypatch.setattr(warnings, "showwarning", lambda *args: told.append(args))
  monkeypatch.setattr(outages, "_told", set())
  outages.hear_of_programs()
  for name in "ab":
    for how in ("reading", "writing"):
      warnings.showwarning(
        UserWarning(
          f"Error {how} persistent compilation cache entry for {name!r}: "
          "OSError: [Errno 28] No space left on device"
        ),
        UserWarning, "x.py", 1,
      )  # fmt: skip
  warnings.showwarning(UserWarning("another"), UserWarning, "x.py", 1)
  said = capfd.readouterr().err
  assert said.count("compiled programs cannot be kept") == 1
  assert said.count("compiled programs cannot be read") == 1
  assert "No space left on device" in said and len(told) == 1
