#!/usr/bin/env bash
# bash recipes/curvature/run.sh [runs/curvature [--model DIR --pool FILE --images DIR ...]]
# GFIM against FIM on real gradients, and the ranks of single samples' gradients; the embedded world without a pool.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root" python "$root/tools/curvature_pictures.py" --out "${1:-runs/curvature}" "${@:2}"
