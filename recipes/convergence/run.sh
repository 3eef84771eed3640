#!/usr/bin/env bash
# bash recipes/convergence/run.sh [runs/convergence [--dims 2048 4096 ...]]
# Every solver's error by iteration, and the steps of Schulz's iteration, on five distributions.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root" python "$root/tools/solver_study.py" convergence --out "${1:-runs/convergence}" "${@:2}"
