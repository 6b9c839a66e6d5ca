#!/usr/bin/env bash
#SBATCH --job-name=aigc_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#SBATCH --output=%x-%j.log
#
#   sbatch experiments/launch/slurm.sh --config=PATH.py --workdir=DIR
#
# SIGTERM comes to the steps 180 seconds before the end: training saves and ends
# with status 75. Then the job goes back into the queue and continues.
set -uo pipefail

srun --kill-on-bad-exit=0 python -m aigc_jax.train "$@"
status=$?
if [ "$status" -eq 75 ]; then
  echo "stopped and saved: requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
