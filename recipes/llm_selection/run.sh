#!/usr/bin/env bash
# bash recipes/llm_selection/run.sh hellaswag_val.jsonl stories260K [runs/llm_selection [dense|lora [options of study.py]]]
# Three seeds side by side, or those that SEEDS names, then the table. stories260K is a folder that tools/convert_llama2c.py wrote; another causal
# language model will do, with its own learning rate.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) out=${3:-runs/llm_selection} method=${4:-dense} options=("${@:5}")
export OMP_NUM_THREADS=1 PYTHONPATH="$here/../.."
study() { python "$here/study.py" "$1" "$2" --out "$out" --method "$method" "${options[@]}" "${@:3}"; }
jobs=()
for seed in ${SEEDS:-0 1 2}; do
  study "$1" "$2" --seed "$seed" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
study "$1" "$2" --table
