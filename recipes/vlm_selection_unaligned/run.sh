#!/usr/bin/env bash
# bash recipes/vlm_selection_unaligned/run.sh runs/vlm_selection_unaligned [options of `vlmsel demo`, such as --seeds 5]
# 20 % first, with worlds, scores and the whole pool's model; the other parts take these over.
set -euo pipefail
out=$1
for percent in 20 40 60; do
  worlds=()
  [ "$percent" = 20 ] || worlds=(--worlds "$out/20")
  vlmsel demo --preset unaligned --settings.fraction "0.$percent" "${worlds[@]}" --out "$out/$percent" "${@:2}"
done
