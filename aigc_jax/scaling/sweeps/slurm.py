"""A sweep as one SLURM array: a task runs a point, and notes what it became."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadConfig, Stopped, StorageFailure
from aigc_jax.scaling.sweeps.ledger import Entry

SCRIPT, NAMES, LOGS = "slurm.sh", "slurm.txt", "slurm"

_TEXT = """#!/usr/bin/env bash
#SBATCH --job-name={job}
#SBATCH --array=0-{last}{limit}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#SBATCH --output="{logs}/%A_%a.log"
{options}
# A point for each task: the lines of slurm.txt.
# SIGTERM comes 180 seconds before the end: the point saves and ends with status
# {stopped}; then its task goes back into the queue and continues.
set -uo pipefail

cd {folder}
name="$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {names})"
# In the background: bash hears a signal only while it waits.
{python} -m aigc_jax.sweep --out={out} --point="$name" &
child=$!
trap 'kill -TERM "$child"' TERM
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  status=$?
done
if [ "$status" -eq {stopped} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def write(
  entries: Sequence[Entry], out: Path, parallel: int, options: Sequence[str]
) -> Path:
  """Writes the script of an array over these points; its path.

  parallel: how many tasks may run at once; 0 is as many as the cluster lets.
  options: of sbatch, "--partition=gpu", for every task.
  """
  for option in options:
    if not option.startswith("-") or "\n" in option:
      raise BadConfig(
        f"--sbatch={option}: expected an option of sbatch, such as "
        "--sbatch=--partition=gpu"
      )
  out = out.absolute()
  odd = re.search(r"""["'\\%\x00-\x1f\x7f]""", str(out))
  if odd:
    raise BadConfig(
      f"--out={out}: sbatch reads its options as they stand, and {odd[0]!r} in "
      "the name of this folder would be another one there: use another --out"
    )
  (out / LOGS).mkdir(exist_ok=True)
  files.write_text(out / NAMES, "".join(f"{e.name}\n" for e in entries))
  text = _TEXT.format(
    job=re.sub(r"[^\w.+=-]+", "-", f"sweep-{out.name}"),
    last=len(entries) - 1,
    limit=f"%{parallel}" if parallel else "",
    logs=out / LOGS,
    options="".join(f"#SBATCH {option}\n" for option in options),
    names=shlex.quote(str(out / NAMES)),
    folder=shlex.quote(os.getcwd()),
    python=shlex.quote(sys.executable),
    out=shlex.quote(str(out)),
    stopped=Stopped.code,
  )
  files.write_bytes(out / SCRIPT, text.encode(), 0o777)
  return out / SCRIPT


def submit(script: Path) -> str:
  """Gives the script to sbatch; what that said. Raises BadConfig without it."""
  if shutil.which("sbatch") is None:
    raise BadConfig(
      f"there is no sbatch here. {script} is written: submit it where there is "
      f"one, sbatch {shlex.quote(str(script))} (--nosubmit only writes it)"
    )
  found = subprocess.run(
    ["sbatch", str(script)], capture_output=True, text=True
  )
  if found.returncode:
    raise StorageFailure(f"sbatch {script}: {found.stderr.strip()[:500]}")
  return found.stdout.strip()
