"""Where a run comes from: what run.json holds, without secrets."""

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

MOST_DIFF = 1 << 20

# Only these variables are recorded.
VARIABLES = re.compile(
  r"(XLA_FLAGS|LIBTPU_INIT_ARGS|JAX_\w+|AIGC_JAX_\w+|NCCL_\w+|TPU_\w+"
  r"|SLURM_(JOB_ID|NTASKS|PROCID|NNODES|JOB_NODELIST)|OMP_NUM_THREADS"
  r"|PYTHONHASHSEED|CUDA_VISIBLE_DEVICES)"
)

# The last word of a name whose value nobody may read later.
SECRET = re.compile(
  r"(^|[._\-])(\w*(api_?key|access_?key|private_?key|secret|password|passwd"
  r"|credentials?|auth)|(\w+_)?token|key)$",
  re.IGNORECASE,
)

# Values that are secrets whatever their name is.
TOKENS = re.compile(
  r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
  r"|github_pat_\w{20,}|AKIA[A-Z0-9]{12,}|AIza[A-Za-z0-9_\-]{30,}"
  r"|eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]+"
  r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(.|\n)*?-----END [A-Z ]*-----"
  r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
REDACTED = "[redacted]"

# Settings of JAX and variables of libraries that change the bits of results.
NUMERIC_SETTINGS = (
  "jax_default_prng_impl", "jax_threefry_partitionable",
  "jax_random_seed_offset", "jax_default_matmul_precision", "jax_enable_x64",
  "jax_numpy_dtype_promotion", "jax_softmax_custom_jvp", "jax_disable_jit",
  "jax_use_shardy_partitioner",
)  # fmt: skip
NUMERIC_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
NUMERIC_WORDS = ("NCCL_ALGO", "NCCL_PROTO", "NVIDIA_TF32_OVERRIDE")
# Flags of XLA that say what is written, or what the mesh says already.
SILENT = re.compile(
  r"xla_dump_\w+|xla_force_host_platform_device_count|xla_hlo_profile"
  r"|xla_gpu_per_fusion_autotune_cache_dir|xla_gpu_kernel_cache_file"
)


def describe(*, argv: Sequence[str], mesh: Mapping[str, int], **more) -> dict:
  """The state of the world a run starts in, as JSON.

  `more` goes in as it is, redacted: config hash, fingerprints, hash of the
  compiled step, the configuration.
  """
  first = jax.devices()[0]
  return redact(
    {
      "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "argv": redact_flags(argv),
      "folder": os.getcwd(),
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "python": sys.version.split()[0],
      "system": platform.platform(),
      "processor": _processor(),
      "packages": packages(),
      "code": code(Path(__file__).parents[1]),
      "environment": {
        name: value
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name) and not SECRET.search(name)
      },
      "jax": {
        "backend": jax.default_backend(),
        "platform_version": first.client.platform_version,
        **devices(mesh),
        "config": {
          name: value
          for name, value in sorted(jax.config.values.items())
          if isinstance(value, str | int | float | bool | None)
        },
      },
    }
    | more
  )


def numerics() -> dict:
  """What may change the bits of a result beside code, packages and config."""
  device = jax.devices()[0]
  settings = {
    name: value
    for name in NUMERIC_SETTINGS
    if isinstance(
      value := jax.config.values.get(name), str | int | float | bool
    )
  }
  given = {
    name: flags
    for name in NUMERIC_VARIABLES
    if (flags := flags_of(os.environ.get(name, "")))
  }
  words = {n: os.environ[n] for n in NUMERIC_WORDS if os.environ.get(n)}
  found = {"backend": device.platform, "device_kind": device.device_kind}
  if device.platform == "cpu":  # its programs are made for it and its threads
    found |= {"processor": _processor(), "cores": _cores()}
  return redact(found | settings | given | words)


def flags_of(text: str) -> dict[str, str]:
  """{flag: value} of "--flag=value ...", without what changes no number."""
  found = {}
  for word in text.split():
    name, _, value = word.lstrip("-").partition("=")
    if not SILENT.fullmatch(name):
      found[name] = value  # the last one counts
  return found


def _cores() -> int:
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 0


def devices(mesh: Mapping[str, int]) -> dict:
  """What a run computes on: the kind and number of devices, their mesh."""
  return {
    "device_kind": jax.devices()[0].device_kind,
    "devices": len(jax.devices()),
    "processes": jax.process_count(),
    "mesh": dict(mesh),
  }


def packages() -> dict[str, str]:
  """The version of every installed distribution."""
  # Each asking for `metadata` parses a file anew.
  found = (d.metadata for d in importlib.metadata.distributions())
  return dict(sorted((x["Name"], x["Version"]) for x in found if "Name" in x))


def code(package: Path) -> dict:
  """Commit and difference where `package` is under git, else a hash of it."""
  commit = _git(package, "rev-parse", "HEAD")
  tracked = commit and _git(package, "ls-files", "__init__.py", "trainer")
  if not tracked:
    return {"commit": None, "sha256": _hash_of(package)}
  diff = _git(package, "diff", "HEAD", "--no-ext-diff", "--no-color") or ""
  return {
    "commit": commit.strip(),
    "dirty": bool(diff),
    "diff": diff[:MOST_DIFF],
    "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
    "sha256": _hash_of(package),
  }


# Files that added kinds of a user's own, by name: their sha256.
EXTENSIONS: dict[str, str] = {}


def program() -> str:
  """What must be alike where several processes run one program."""
  return f"{_hash_of(Path(__file__).parents[1])} {jax.__version__}"


def _git(folder: Path, *words: str) -> str | None:
  try:
    done = subprocess.run(
      ["git", "-C", str(folder), *words],
      capture_output=True,
      timeout=20,
      check=True,
      stdin=subprocess.DEVNULL,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.decode(errors="replace")


def _hash_of(package: Path) -> str:
  total = hashlib.sha256("".join(EXTENSIONS.values()).encode())
  for path in sorted(package.rglob("*.py")):
    total.update(path.relative_to(package).as_posix().encode() + b"\0")
    total.update(hashlib.sha256(path.read_bytes()).digest())
  return total.hexdigest()


def _processor() -> str:
  try:
    text = Path("/proc/cpuinfo").read_text()
  except OSError:
    return platform.processor()
  found = re.search(r"model name\s*:\s*(.+)", text)
  return found[1] if found else platform.processor()


def redact(value, name: str = ""):
  """`value` without what looks like a secret, by its name or by itself."""
  if isinstance(value, Mapping):
    return {str(k): redact(v, str(k)) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [redact(v) for v in value]
  if isinstance(value, str):
    # What is no UTF-8, as a variable may be, would make a file unreadable.
    value = value.encode(errors="backslashreplace").decode()
    return REDACTED if SECRET.search(name) else TOKENS.sub(REDACTED, value)
  return value


def redact_flags(argv: Sequence[str]) -> list[str]:
  """A command line whose secret flags have lost their values."""
  words, hide = [], False
  for word in argv:
    flag, equals, _ = word.partition("=")
    secret = flag.startswith("-") and SECRET.search(flag.lstrip("-"))
    if hide and not word.startswith("-"):
      words.append(REDACTED)
    else:
      shown = f"{flag}={REDACTED}" if secret and equals else word
      words.append(TOKENS.sub(REDACTED, shown))
    hide = bool(secret and not equals)
  return words
