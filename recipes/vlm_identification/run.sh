#!/usr/bin/env bash
# bash recipes/vlm_identification/run.sh runs/vlm_identification [options of study.py, such as --seeds 0 1 --tasks style]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.."
python "$here/study.py" --out "$@"
