#!/usr/bin/env bash
# bash recipes/validate/run.sh MODEL GLUE runs/validate [pool] [target samples per file] [train] [subsets] [seeds]
# How much is a score worth? LDS, deciles, groups and duel of all scorers, on the embedded world and on SST-2.
set -euo pipefail
model=$1 glue=$2 out=$3 pool=${4:-300} target=${5:-8} train=${6:-200} subsets=${7:-32} seeds=${8:-2}
here=$(cd "$(dirname "$0")" && pwd)

study() { # a run folder and its name: the four studies, of which LDS is shared by all scorers
  vlmsel validate --run "$1" --study lds --subsets "$subsets" --seeds "$seeds" --out "$out/$2-lds"
  vlmsel validate --run "$1" --study duel --fraction 0.2 --draws 1 --seeds "$seeds" --out "$out/$2-duel"
  vlmsel validate --run "$1" --study deciles --fraction 0.1 --seeds "$seeds" --out "$out/$2-deciles"
  vlmsel validate --run "$1" --study groups --seeds "$seeds" --out "$out/$2-groups"
}

vlmsel detect --config "$here/detect.yaml" --data "$glue" --model "$model" --train_samples "$train" --out "$out/sst2"
study "$out/sst2" sst2

world=$out/world
[ -f "$world/world.json" ] || python -c "
import sys; from pathlib import Path
from vlmsel.data.world.files import WorldSizes, write_world
write_world(Path(sys.argv[1]), WorldSizes(0, int(sys.argv[2]), int(sys.argv[3]), 0), 0)" "$world" "$pool" "$target"
files=(--pool "$world/pool.json" --images "$world/images")
for task in vqav2 gqa textvqa; do files+=("--targets.$task" "$world/targets/$task.json"); done
vlmsel warmup --model tiny-aligned "${files[@]}" --fraction 0.2 --least 40 --out "$out/warmup"
vlmsel score --config "$here/scorers.yaml" --model "$out/warmup" "${files[@]}" --out "$out/vlm"
study "$out/vlm" vlm
