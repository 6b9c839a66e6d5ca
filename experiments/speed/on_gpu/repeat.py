"""Whether a run on this card is the same twice, and once killed."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.speed.on_gpu.part import Call

FLAG = "--xla_gpu_deterministic_ops=true"
STEPS, SAVED, KILLED = 24, 8, 13


def find(call: Call) -> None:
  # Programs of their own each time: what is tried out may differ, too.
  os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
  digests(call)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "text.txt").write_text(text())
    with concurrent.futures.ThreadPoolExecutor() as side_by_side:
      ways = ("",) if call.rehearse else ("", FLAG)
      found = {
        flags: side_by_side.submit(killed_and_twin, folder, flags)
        for flags in ways
      }
      for flags, one in found.items():
        call.say(f"killed = twin {flags}".strip(), one.result())


def digests(call: Call) -> None:
  """Two trainings of 20 steps for each way of the embedding's gradient."""
  forms = ("scatter", "sorted", "product")
  started = {}
  for flags in ("", FLAG):
    for form in forms[: 1 if call.rehearse else 3]:
      for turn in range(2):
        change = {"compute.embed_gradient": form}
        line = [
          sys.executable, "-m", "experiments.speed.on_gpu.losses",
          f"--change={json.dumps(change)}",
        ]  # fmt: skip
        started[form, flags, turn] = subprocess.Popen(
          line, env=environment(flags), text=True, stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
        )  # fmt: skip
  found = {}
  for key, process in started.items():
    out, err = process.communicate()
    if process.returncode:
      call.say(f"failed: {key}", err.splitlines()[-8:])
    else:
      found[key] = json.loads(out.splitlines()[-1])["digest"]
  for form, flags, turn in started:
    pair = [found.get((form, flags, t)) for t in range(2)]
    if turn == 0 and None not in pair:
      name = f"twice the same bits, {form} {flags}".strip()
      call.say(name, pair[0] == pair[1])


def environment(flags: str) -> dict[str, str]:
  """With those flags of XLA, which a CPU does not know."""
  first = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
  given = os.environ.get("XLA_FLAGS", "")
  known = given if first == "cpu" else f"{given} {flags}".strip()
  return os.environ | {"XLA_FLAGS": known}


def text() -> str:
  """Some text that is here: the code."""
  here = Path(__file__).parents[3]
  return "".join(p.read_text() for p in sorted(here.glob("aigc_jax/*.py")))


def command(folder: Path, workdir: Path) -> list[str]:
  return [
    sys.executable, "-m", "aigc_jax.train", "--config=configs/text_file.py",
    f"--workdir={workdir}", f"--config.data.path={folder}/text.txt",
    f"--config.data.root={folder}/stores", f"--config.steps={STEPS}",
    "--config.data.batch=8", "--config.data.length=128",
    "--config.compute.dtype=bfloat16", "--config.model.layers=2",
    "--config.model.dropout=0.1", "--config.optim.warmup_steps=2",
    f"--config.checkpoint.every_steps={SAVED}", "--config.log.every_steps=1",
    f"--config.evaluate.heldout.every_steps={SAVED}",
  ]  # fmt: skip


def rows(workdir: Path) -> list[dict]:
  path = workdir / "metrics.jsonl"
  if not path.is_file():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith("\n")]


def killed_and_twin(folder: Path, flags: str) -> dict:
  """One run that is killed and started again, and one that is not."""
  hurt, twin = (folder / f"{n}{bool(flags):d}" for n in ("hurt", "twin"))
  for workdir in (hurt, twin):
    shutil.rmtree(workdir, ignore_errors=True)
  quiet = dict(
    env=environment(flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  process = subprocess.Popen(command(folder, hurt), **quiet)
  while process.poll() is None and not any(
    row.get("step", 0) >= KILLED for row in rows(hurt)
  ):
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  for workdir in (hurt, twin):
    done = subprocess.run(command(folder, workdir), **quiet)
    if done.returncode:
      return {"ok": False, "where": done.stderr.decode().splitlines()[-12:]}
  losses = [
    {row["step"]: row["train/loss"] for row in rows(w) if "train/loss" in row}
    for w in (hurt, twin)
  ]
  differ = [s for s, loss in losses[1].items() if losses[0].get(s) != loss]
  return {
    "ok": not differ, "steps": len(losses[1]), "first that differs":
    min(differ, default=None), "killed by": -process.returncode,
    "last losses": [x.get(STEPS) for x in losses],
  }  # fmt: skip
