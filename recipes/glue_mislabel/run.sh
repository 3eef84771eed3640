#!/usr/bin/env bash
# bash recipes/glue_mislabel/run.sh glue roberta-large runs/glue_mislabel [seeds]
# Finds flipped labels of the six tasks whose folders of GLUE's official files are there: adapters of rank 8, 16 and 64, and
# the head alone. Compares scorers with Exact by rank on CoLA and SST-2.
# Then judges 300 labels each of SST-2 and MRPC by models of other folds.
set -euo pipefail
glue=$1 model=$2 out=$3 seeds=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
for pair in sst2:SST-2 cola:CoLA mrpc:MRPC qnli:QNLI qqp:QQP rte:RTE; do
  task=${pair%%:*}
  [ -d "$glue/${pair#*:}" ] || { echo "$glue/${pair#*:} is not there: $task is left out" >&2; continue; }
  study=(--task "$task" --data "$glue/${pair#*:}" --model "$model" --seeds "$seeds")
  vlmsel detect --config "$here/detect.yaml" "${study[@]}" --out "$out/$task"
  vlmsel detect --config "$here/ranks.yaml" "${study[@]}" --lora.r 16 --out "$out/r16_$task"
  vlmsel detect --config "$here/ranks.yaml" "${study[@]}" --lora.r 64 --out "$out/r64_$task"
  vlmsel detect --config "$here/ranks.yaml" "${study[@]}" --tune last-layer --out "$out/head_$task"
done
against() { # task, folder, ranks
  for rank in "${@:3}"; do
    vlmsel detect --config "$here/against_exact.yaml" --task "$1" --data "$glue/$2" --model "$model" --lora.r "$rank" \
      --seeds "$seeds" --out "$out/rank${rank}_$1"
  done
}
against cola CoLA 1 2 4 8
against sst2 SST-2 1 4
judged() {  # name, folder and columns of a set: with a clean set beside the folds, and without
  local name=$1 files=(--train "$2/train.tsv" "${@:3}")
  vlmsel detect --config "$here/folds.yaml" "${files[@]}" --validation "$2/dev.tsv" --validation_samples 300 --model "$model" \
    --seeds "$seeds" --out "$out/folds_${name}_clean"
  vlmsel detect --config "$here/folds.yaml" "${files[@]}" --model "$model" --seeds "$seeds" --out "$out/folds_$name"
}
judged sst2 "$glue/SST-2" --text_columns '[sentence]'
judged mrpc "$glue/MRPC" --text_columns '["#1 String","#2 String"]' --label_column Quality
