"""Sweeps whose points do nothing: a few lines stand in for training."""

import json
import sys
from pathlib import Path

from aigc_jax import run
from aigc_jax.presets import skeleton
from aigc_jax.run import overrides
from aigc_jax.run.settings import plain_of
from aigc_jax.scaling.sweeps import launch, ledger, progress, work
from aigc_jax.scaling.sweeps.plan import Cost, Plan, Planned

# Stands in for training: says what it was given, leaves a result, or ends as
# BEHAVIOUR.json says for each attempt of a seed: a status, or "wait".
STAND_IN = """
import json, pathlib, signal, subprocess, sys, time
behaviour = json.loads(pathlib.Path(sys.argv[1]).read_text())
given = dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
if "joint" in given:  # several at once: each by itself, and what became of it
  path, outcomes = pathlib.Path(given["joint"]), {}
  for run in json.loads(path.read_text())["runs"]:
    words = [f"--{key}={value}" for key, value in run.items()]
    line = [sys.executable, "-S", "-E", sys.argv[0], sys.argv[1], *words]
    status = subprocess.run(line).returncode
    error = ["it said why"] if status else []
    outcomes[run["workdir"]] = {"status": status, "error": error}
  noted = path.with_name(path.stem + ".outcome.json")
  noted.write_text(json.dumps({"outcomes": outcomes}))
  sys.exit(max(one["status"] for one in outcomes.values()))
config = json.loads(pathlib.Path(given["config"]).read_text())
workdir = pathlib.Path(given["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
told = workdir / "attempts.txt"
seed = str(config["seed"])
attempt = len(told.read_text().splitlines()) if told.exists() else 0
with open(told, "a") as file:
  print(*sys.argv[2:], file=file)
does = behaviour.get(seed, [0])
does = does[min(attempt, len(does) - 1)]
if does == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  (workdir / "waits").touch()
  time.sleep(60)
if does:
  print(*(f"line {i}" for i in range(30)), f"died of {does}", sep="\\n",
        file=sys.stderr)
  sys.exit(does)
loss = 2.0 + int(seed)
row = {"step": 4, "tokens": 32, "train/loss": loss}
rows = [row, row | {"eval/heldout/loss": loss}]
(workdir / "metrics.jsonl").write_text(
  "".join(json.dumps(row) + "\\n" for row in rows)
)
(workdir / "config.json").write_text(json.dumps(config))
for step in (2, 4, 6, 8):
  saved = workdir / "checkpoints" / str(step)
  saved.mkdir(parents=True, exist_ok=True)
  (saved / "manifest.json").touch()
(workdir / "run.json").write_text(json.dumps({"seed": config["seed"]}))
(workdir / "result.json").write_text(
  json.dumps({"step": 4, "eval/heldout/loss": loss})
)
"""


def planned(seed: int, arm: str = "plain", **keys) -> Planned:
  """A point that is not built: its cost is made up."""
  settings = [("seed", str(seed)), ("steps", "4"), *keys.items()]
  config = overrides.apply(plain_of(skeleton()), settings)
  fingerprint = run.fingerprint(run.read(config))
  return Planned(
    f"{arm}-seed{seed}-{fingerprint[:8]}", arm, {"seed": seed} | keys, config,
    fingerprint, Cost(100, 4, 32, 1e6),
  )  # fmt: skip


def plan_of(*points: Planned) -> Plan:
  return Plan("sweep.py", points, "", "eval/heldout/loss")


def line(folder: Path, behaviour: dict | None = None) -> str:
  """A launcher that runs the stand-in in the place of training."""
  (folder / "stand_in.py").write_text(STAND_IN)
  (folder / "behaviour.json").write_text(json.dumps(behaviour or {}))
  parts = (
    sys.executable,
    "-S",
    "-E",
    folder / "stand_in.py",
    folder / "behaviour.json",
  )
  return " ".join(f"'{part}'" for part in parts) + " {command}"


def carry_out(index, launcher: str, parallel: int = 1, wish=None, **more):
  """The states of all points after they were run."""
  work.carry_out(
    index.entries,
    launcher=launcher,
    shares=launch.shares(parallel),
    view=progress.Lines(index.entries, index.metric),
    wish=wish or work.Wish(),
    metric=index.metric,
    **more,
  )
  return [ledger.state_of(entry) for entry in index.entries]


def attempts(entry) -> list[str]:
  """The command lines with which a point was started."""
  path = entry.workdir / "attempts.txt"
  return path.read_text().splitlines() if path.exists() else []
