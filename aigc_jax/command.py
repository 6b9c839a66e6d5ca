"""What all commands share: flags, devices, exit codes."""

import contextlib
import errno
import functools
import itertools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from aigc_jax import early, files, native, outages, run, sharding, terminal
from aigc_jax.errors import (
  BadConfig,
  BadKey,
  MissingKeys,
  Refusal,
  StorageFailure,
  nearest,
)
from aigc_jax.presets import skeleton
from aigc_jax.trainer.loop import COMPILING

# The flags of several processes.
TOGETHER = ("coordinator", "processes", "process", "heartbeat", "join_limit")
HELP = re.compile(r"--?(help(short|full|xml)?|\?)")
COMPILED = "~/.cache/aigc_jax/compiled"
CACHE = "JAX_COMPILATION_CACHE_DIR"


def main(
  command: Callable[..., int | None],
  *,
  config: bool = False,
  words: bool = False,
  alone: bool = False,
) -> None:
  """Runs `command` with the flags parsed; a refusal becomes its exit status.

  config: it has --config. words: it takes the words that are no flags. alone:
  it is the work of one process, which waits for no others.
  A refusal prints its message and nothing else: it tells the user what to do,
  and a stack trace would not.
  """
  terminal.guard()
  if config:
    define_config(flags.FLAGS)
  flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, of several")
  flags.DEFINE_integer("processes", 0, "how many processes run together")
  flags.DEFINE_integer("process", -1, "which of them this one is, from 0")
  flags.DEFINE_integer("heartbeat", 30, "seconds until a silent one is dead")
  flags.DEFINE_integer("join_limit", 300, "seconds to wait for all of them")
  flags.DEFINE_multi_string("with", [], "FILE.py with kinds of your own")
  for flag in _own_flags().values():  # in --help, not only --helpfull
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  logging.set_verbosity(logging.WARNING)
  speak_once()

  def guarded(argv):
    early.imported()
    try:
      if argv[1:] and not words:
        raise BadConfig(f"unexpected {argv[1]!r}: flags look like --name=value")
      start_jax(alone)
      status = command(argv[1:]) if words else command()
    except Refusal as refusal:
      sys.stdout.flush()
      text = f"{text_of(refusal)}{_room(refusal)}{_place(refusal)}"
      print(f"aigc_jax: {text}", file=sys.stderr, flush=True)
      status = refusal.code
    except Exception as error:
      if outages.of_another_process(error):
        outages.left_alone(str(error).split("\n")[0][:300])
      refusal = outages.of_the_machine(error)
      if refusal is None:
        raise
      print(f"aigc_jax: {refusal}", file=sys.stderr, flush=True)
      status = refusal.code
    except KeyboardInterrupt:
      print("aigc_jax: interrupted", file=sys.stderr)
      status = early.INTERRUPTED
    _leave(status or 0)

  app.run(guarded, flags_parser=_parse)


def speak_once() -> None:
  """Leaves absl the only one that writes what is logged to the terminal.

  A library that logs while it is imported gives Python's own logging a handler
  for that, and all would be said twice.
  """
  root = logging.logging.root
  for handler in list(root.handlers):
    if type(handler) is logging.logging.StreamHandler:
      root.removeHandler(handler)
  logging.get_absl_handler().setFormatter(_Plain())


class _Plain(logging.logging.Formatter):
  """ "warning: ..." instead of a thread's number and a line of the program."""

  def format(self, record) -> str:
    return f"{record.levelname.lower()}: {super().format(record)}"


def _leave(status: int) -> NoReturn:
  """Ends the process with this status.

  A compilation that nobody waits for any more cannot be called off, and it
  crashes a process that ends in good order around it.
  """
  status = terminal.settled(status)
  if any(t.name == COMPILING for t in threading.enumerate()):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def text_of(error: BaseException) -> str:
  """The message, without what JAX adds to errors inside a traced function."""
  return str(error).split("\n--------------------")[0]


FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
TOLD = re.compile(r"\b(make|makes) room\b|\bfree some space\b", re.IGNORECASE)


def _room(refusal: Refusal) -> str:
  """What to do about a disk that is full; "" where it is not, or is said.

  Whatever was to be written, and whoever found that it cannot be.
  """
  text = text_of(refusal)
  if not any(why in text for why in FULL) or TOLD.search(text):
    return ""
  return ": make room there, then run the same line again"


def _place(refusal: Refusal) -> str:
  """Where a wrong key stands in the file of --config; "" where it does not."""
  if not isinstance(refusal, BadKey) or "config" not in flags.FLAGS:
    return ""
  line = tuple(f"{key}." for key, _ in settings_given())
  if not config_given() or f"{refusal.key}.".startswith(line):
    return ""
  place = f"\n  in {run.place_of(config_given(), refusal.key)}"
  if isinstance(refusal, MissingKeys) and refusal.key in SECTIONS:
    place += (
      f"\n  config.{refusal.key}.update(KEY=VALUE) sets some keys, and leaves "
      "the others as they are"
    )
  return place


def define_config(values: flags.FlagValues) -> None:
  """--config; `parsed` reads its keys."""
  what = (
    "PATH.py, PATH.py:PRESET or DIR/config.json; any key of it: "
    "--config.section.key=VALUE"
  )
  flags.DEFINE(_Configs(), "config", None, what, values)


class _Configs(flags.ArgumentParser):
  """What --config names, with each --config.KEY=VALUE of the line."""

  settings: list[tuple[str, str | None]] = []
  given = ""

  def parse(self, argument):
    self.given = argument
    return run.configured(argument, self.settings)

  def flag_type(self):
    return "config file"


def config_given() -> str:
  """PATH.py:PRESET, as it stands on the command line."""
  return flags.FLAGS["config"].parser.given


def settings_given() -> list[tuple[str, str | None]]:
  """[(key, text)] of each --config.KEY=TEXT of the command line."""
  return flags.FLAGS["config"].parser.settings


def _parse(argv: Sequence[str]) -> list[str]:
  """absl's parsing, its errors as one line and exit status 78.

  Help that was asked for is no failure, which absl takes it for.
  """
  asked = [word for word in argv[1:] if HELP.fullmatch(word)]
  if asked:
    with contextlib.suppress(SystemExit):
      flags.FLAGS([argv[0], asked[0]])
    _leave(0)
  try:
    for word in argv[1:]:
      files.check_text(word, "the argument")
    return parsed(flags.FLAGS, argv)
  except Refusal as refusal:
    message, status = text_of(refusal), refusal.code
  except flags.UnrecognizedFlagError as error:
    message, status = _unknown(error), BadConfig.code
  except (flags.Error, OSError) as error:
    message, status = _plainly(" ".join(str(error).split())), BadConfig.code
  print(f"aigc_jax: {message}", file=sys.stderr)
  sys.exit(status)


# What Python says of a word that is no number, and what is said instead.
NO_NUMBER = (
  (r"invalid literal for int\(\).*", "expected a whole number"),
  (r"could not convert string to float.*", "expected a number"),
)


def _plainly(message: str) -> str:
  """What absl says; of a word that is no number also what its flag counts."""
  for pattern, words in NO_NUMBER:
    plain = re.sub(pattern, words, message)
    if plain != message:
      return plain + _meaning(message)
  return message


def _meaning(message: str) -> str:
  """The help of the flag that an error of absl names first."""
  found = re.match(r"flag --(\w+)=", message)
  if not found or found[1] not in flags.FLAGS:
    return ""
  return f" ({flags.FLAGS[found[1]].help})"


def parsed(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """The words that are no flags; absl's parsing, with keys of the config.

  What --with=FILE.py adds is there before a config is read.
  """
  for word, after in itertools.zip_longest(argv[1:], argv[2:]):
    if re.match(r"--?with=", word):
      run.extend(word.partition("=")[2])
    elif re.fullmatch(r"--?with", word) and after:
      run.extend(after)
  if "config" in values:
    words = values.read_flags_from_files(argv[1:], force_gnu=False)
    argv, values["config"].parser.settings = _without_keys([argv[0], *words])
  return values(argv)


KEY = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def _without_keys(argv: Sequence[str]) -> tuple[list[str], list]:
  """(the other words, [(key, text or None)]) of a command line.

  A key and its value stand together, --config.KEY=VALUE, or one after the
  other; a key of yes and no may stand alone, as --config.KEY or --noconfig.KEY.
  """
  left, settings, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    found = KEY.fullmatch(word)
    if word == "--":
      return left + [word, *words], settings
    if not found:
      left.append(word)
      continue
    no, key, value = found.groups()
    if no:
      value = "false"
    elif value is None and words and not re.match(r"--?[a-z]", words[0]):
      value = words.pop(0)
    settings.append((key, value))
  return left, settings


SECTIONS = tuple(skeleton())  # of any config


def _unknown(error: flags.UnrecognizedFlagError) -> str:
  """Names a flag that is none, and what may have been meant.

  A key of the config; or else the one whose help has that word; or the flag
  that is called nearly so.
  """
  name = error.flagname.strip("-")
  if meant := _as_key(name, error):
    return f"--{name} is unknown; {meant}"
  own = _own_flags()
  word = re.compile(rf"\b{re.escape(name.replace('_', ' '))}\b")
  for other, flag in own.items():
    if word.search(flag.help):
      return f"--{name} is unknown; there is --{other}: {flag.help}"
  close = nearest(f"--{name}", [f"--{other}" for other in own])
  return f"--{name} is unknown{close} (--help lists what there is)"


def _own_flags() -> dict[str, flags.Flag]:
  """The flags of this command, without those of libraries."""
  by_module = flags.FLAGS.flags_by_module_dict()
  return {
    flag.name: flag
    for module, found in by_module.items()
    if module == sys.argv[0] or module.startswith("aigc_jax")
    for flag in found
  }


def _as_key(name: str, error: flags.UnrecognizedFlagError) -> str:
  """Where a flag that is none is the name of a key of the config: that key."""
  key = run.section_of(name, skeleton()) if "config" in flags.FLAGS else None
  if key is None and "config" in flags.FLAGS and name.split(".")[0] in SECTIONS:
    key = name  # with its section; whether there is such is told by that flag
  if key is None:
    return ""
  value = error.flagvalue.partition("=")[2] or "VALUE"
  return f"it is a key of the config: --config.{key}={value}"


# Settings of JAX with which this program is something else, or does not run:
# float64, guards and checks that refuse what it does on purpose (a mean of no
# step is NaN). In the environment they are mostly meant for another program.
SETTINGS: dict[str, Any] = {
  "jax_enable_x64": False,
  "jax_numpy_rank_promotion": "allow",
  "jax_numpy_dtype_promotion": "standard",
  "jax_transfer_guard": "allow",
  "jax_transfer_guard_host_to_device": "allow",
  "jax_transfer_guard_device_to_host": "allow",
  "jax_transfer_guard_device_to_device": "allow",
  "jax_debug_nans": False,
  "jax_debug_infs": False,
  "jax_disable_jit": False,
  "jax_no_tracing": False,
  "jax_no_execution": False,
}


def settle_jax() -> list[str]:
  """Sets what this program relies on; the names of what was set otherwise."""
  found = []
  for name, needed in SETTINGS.items():
    value = jax.config.values.get(name, needed)
    if value is not None and value != needed:
      jax.config.update(name, needed)
      found.append(name)
  return found


def _tell_who_speaks() -> None:
  """Says in the terminals of the other processes why they stay silent."""
  if jax.distributed.is_initialized() and not is_first():
    print(
      f"aigc_jax: process {jax.process_index()} of {jax.process_count()} has "
      "joined; process 0 speaks for all",
      file=sys.stderr,
      flush=True,
    )


def _tell_of_settings(names: Sequence[str]) -> None:
  if names and is_first():
    shown = ", ".join(f"{name.upper()}={SETTINGS[name]}" for name in names)
    print(
      f"aigc_jax: goes on as with {shown}: it computes in 32 bits or fewer, "
      "and compiles what it runs. Unset what the environment says otherwise",
      file=sys.stderr,
    )


def start_jax(alone: bool = False) -> None:
  """Joins the other processes, and remembers compiled programs on the disk.

  alone: there are none to be joined.
  """
  values = flags.FLAGS
  if alone and (values.coordinator or values.processes > 1):
    raise BadConfig(
      "this command is the work of one process: leave --coordinator, "
      "--processes and --process out"
    )
  outages.check_xla_flags()
  changed = settle_jax()
  sharding.start_distributed(
    values.coordinator,
    1 if alone else values.processes,
    0 if alone else values.process,
    heartbeat_seconds=values.heartbeat,
    start_seconds=values.join_limit,
    joining=functools.partial(outages.joining, values.join_limit),
  )
  _tell_who_speaks()
  _tell_of_settings(changed)
  folder = os.environ.get(CACHE) or COMPILED
  why = outages.unusable(folder)
  jax.config.update(CACHE.lower(), None if why else _place_of(folder))
  outages.hear_of_programs()
  if why and is_first():
    print(
      f"aigc_jax: compiled programs are not kept, and are compiled anew each "
      f"time: {why}. {CACHE}=FOLDER names a place for them",
      file=sys.stderr,
      flush=True,
    )
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _place_of(folder: str) -> str:
  """A folder's path in full; the address of one that is elsewhere as it is."""
  return folder if "://" in folder else str(files.expanded(folder))


def check_read(unread: Mapping[str, str]) -> None:
  """Raises BadConfig for a flag of the line that would change nothing.

  unread: {flag: what it is of}, the flags that this way of calling does not
  read. What a user asked for is done or refused.
  """
  for name, of in unread.items():
    if flags.FLAGS[name].present:
      longer = f"{name}s"  # as --metric, where several can be named
      mean = longer in flags.FLAGS and longer not in unread
      also = f", or say --{longer}={flags.FLAGS[name].value}" * mean
      raise BadConfig(f"--{name} is of {of}: leave it out{also}")


def check_out(out: str | Path, *, make: bool = False) -> None:
  """Raises StorageFailure where --out could not be written after the work.

  BadConfig where a run keeps it. make: folders that are missing will be made.
  """
  run.check_out(out)
  path = files.expanded(out).absolute()
  if path.is_dir():
    raise StorageFailure(
      f"--out={out} is a folder: name a file in it, such as {path / 'out.json'}"
    )
  folder = path.parent
  while make and not folder.exists():
    folder = folder.parent
  if not folder.is_dir():
    raise StorageFailure(f"--out={out}: there is no folder {folder}")
  if path.exists():
    if not os.access(path, os.W_OK):
      raise StorageFailure(f"--out={out} cannot be written: name another file")
    if not path.is_file():  # a pipe or a device is written to as it is
      return
    folder = path.resolve().parent  # written beside it, and renamed
  try:
    with tempfile.TemporaryFile(dir=folder):  # several processes may ask
      pass
  except OSError as error:
    raise StorageFailure(
      f"--out={out}: {folder} cannot be written ({error.strerror}): name a "
      "file elsewhere"
    ) from None


def room() -> int:
  """Bytes of memory of the first device; of this machine, where it is a CPU."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def quiet_compiler() -> None:
  """Leaves out what C++ writes that nobody needs, once devices are there."""
  native.quiet(jax.devices()[0], jax.process_count())


def tell_reading(where: str) -> None:
  """Says that a model is read now; what could be refused before has been."""
  quiet_compiler()
  if is_first():
    print(f"reading {where} ...", file=sys.stderr, flush=True)


def is_first() -> bool:
  """Whether this process is the one that speaks."""
  return jax.process_index() == 0
