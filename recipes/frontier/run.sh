#!/usr/bin/env bash
# bash recipes/frontier/run.sh runs/frontier [options of frontier.py, such as --seeds 0 1 --clock processor]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../.."
python "$here/frontier.py" --out "$@"
