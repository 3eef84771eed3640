#!/usr/bin/env bash
# bash recipes/hf_vlm/run.sh MODEL mix.json images target.json [runs/hf_vlm]
# MODEL is a folder or a hub name: HuggingFaceTB/SmolVLM2-256M-Video-Instruct or Qwen/Qwen2.5-VL-3B-Instruct.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) model=$1 pool=$2 images=$3 target=$4 out=${5:-runs/hf_vlm}
vlmsel warmup --config "$here/warmup.yaml" --model "$model" --pool "$pool" --images "$images" --out "$out/warmup"
vlmsel score --config "$here/score.yaml" --model "$out/warmup" --pool "$pool" --images "$images" \
  --targets.task "$target" --out "$out/score"
vlmsel select --scores "$out/score" --pool "$pool" --fraction 0.2 --out "$out/chosen.json"
vlmsel tune --config "$here/tune.yaml" --model "$model" --data "$out/chosen.json" --images "$images" --out "$out/tune"
