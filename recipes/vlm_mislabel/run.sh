#!/usr/bin/env bash
# bash recipes/vlm_mislabel/run.sh runs/vlm_mislabel [options of study.py, such as --seeds 0 1 --pool 200]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.."
python "$here/study.py" --out "$@"
