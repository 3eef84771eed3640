#!/usr/bin/env bash
# bash recipes/product_cost/run.sh [runs/product_cost [--ranks 1 2 4 ...]]
# Seconds and bytes of P v by LoRA rank, for every scorer; on a GPU where there is one.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root" python "$root/tools/product_cost.py" --out "${1:-runs/product_cost}" "${@:2}"
