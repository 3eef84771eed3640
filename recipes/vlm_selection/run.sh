#!/usr/bin/env bash
# bash recipes/vlm_selection/run.sh runs/vlm_selection [options of `vlmsel demo`, such as --seeds 5]
# 20 % first, with worlds, scores and the whole pool's model; the other parts take these over.
set -euo pipefail
out=$1
for percent in 20 05 40; do
  worlds=()
  [ "$percent" = 20 ] || worlds=(--worlds "$out/20")
  vlmsel demo --preset papers --settings.fraction "0.$percent" "${worlds[@]}" --out "$out/$percent" "${@:2}"
done
