#!/usr/bin/env bash
# Minutes on one card: what is true and how fast it is (README.md beside this).
#
#   bash experiments/speed/on_gpu.sh [--nanogpt=FOLDER] [--out=FILE.json]
#   bash experiments/speed/on_gpu.sh --rehearse   # tiny, on whatever is here
#
# WHEELS=FOLDER installs what a machine without a network lacks from there.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile \
    --no-cache-dir --target "$scratch/site" "$WHEELS"/*.whl || exit
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
# Several processes share the card: none takes all its memory beforehand.
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
export JAX_COMPILATION_CACHE_DIR="$scratch/compiled" PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL=2 JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
"$python" -m experiments.speed.on_gpu "$@"
