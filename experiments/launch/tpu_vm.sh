#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice.
#
#   experiments/launch/tpu_vm.sh NAME ZONE --config=PATH.py --workdir=DIR
#
# The package is installed on all hosts, in the folder aigc_jax, and DIR is on a
# disk that all of them mount. Status 75 is stopped and saved: begun again.
set -uo pipefail

name="$1" zone="$2"
shift 2
words="$(printf '%q ' "$@")"
while true; do
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd aigc_jax && python3 -m aigc_jax.train $words"
  status=$?
  [ "$status" -eq 75 ] || exit "$status"
done
