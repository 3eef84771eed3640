#!/usr/bin/env bash
# bash recipes/inversion/run.sh [runs/inversion [--dims 2048 4096 ...]]
# Error and seconds of every solver after 20 iterations, by the size of the matrix.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root" python "$root/tools/solver_study.py" inversion --out "${1:-runs/inversion}" "${@:2}"
