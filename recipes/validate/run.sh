#!/usr/bin/env bash
# bash recipes/validate/run.sh MODEL GLUE runs/validate [pool] [target samples per file] [train] [subsets] [trainings] [seeds]
# How much is a score worth? LDS of sixteen scorers, each half trained on so often; deciles, groups and duel of eight and of
# four baselines over seeds; on SST-2 and on the embedded world.
set -euo pipefail
model=$1 glue=$2 out=$3 pool=${4:-200} target=${5:-8} train=${6:-160} subsets=${7:-24} trainings=${8:-2} seeds=${9:-5}
here=$(cd "$(dirname "$0")" && pwd)
some="[TracIn,DataInf,LiSSA,HyperINF,HyperINF.10,KFAC,EKFAC,Hidden,Random,Loss,Length,gradient norm]"

study() { # a run folder, its name, seeds of groups and options: the four studies, of which LDS is shared by all scorers
  local how=(--run "$1" "${@:4}")
  vlmsel validate "${how[@]}" --seeds "$trainings" --study lds --subsets "$subsets" --out "$out/$2-lds"
  vlmsel validate "${how[@]}" --seeds "$seeds" --study duel --scorers "$some" --fraction 0.2 --draws 1 --out "$out/$2-duel"
  vlmsel validate "${how[@]}" --seeds "$seeds" --study deciles --scorers "$some" --fraction 0.1 --out "$out/$2-deciles"
  vlmsel validate "${how[@]}" --seeds "$3" --study groups --scorers "$some" --out "$out/$2-groups"
}

vlmsel detect --config "$here/detect.yaml" --data "$glue" --model "$model" --train_samples "$train" --out "$out/sst2"
study "$out/sst2" sst2 "$trainings"  # a training on four fifths of the sentences takes half a minute

world=$out/world
[ -f "$world/world.json" ] || python -c "
import sys; from pathlib import Path
from vlmsel.data.world.files import WorldSizes, write_world
write_world(Path(sys.argv[1]), WorldSizes(0, int(sys.argv[2]), int(sys.argv[3]), 0), 0)" "$world" "$pool" "$target"
files=(--pool "$world/pool.json" --images "$world/images")
for task in vqav2 gqa textvqa; do files+=("--targets.$task" "$world/targets/$task.json"); done
vlmsel warmup --model tiny-aligned "${files[@]}" --fraction 0.2 --least 40 --out "$out/warmup"
vlmsel score --config "$here/scorers.yaml" --model "$out/warmup" "${files[@]}" --out "$out/vlm"
study "$out/vlm" vlm "$seeds" --epochs 2
scored=("$out/vlm")
for how in scaled rank vote; do # the same scores put together over blocks otherwise
  vlmsel score --config "$here/scorers.yaml" --aggregate "$how" --model "$out/warmup" "${files[@]}" --out "$out/$how"
  scored+=("$out/$how")
done
PYTHONPATH="$here/../.." python "$here/aggregates.py" "$out/vlm-lds" "${scored[@]}"
