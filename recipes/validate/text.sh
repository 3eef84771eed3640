#!/usr/bin/env bash
# bash recipes/validate/text.sh QUESTIONS MODEL runs/validate_text [pool] [target] [subsets] [trainings] [seed]
# The same for a text model: LDS on HellaSwag (its official file) with a causal language model such as stories260K (a folder
# that tools/convert_llama2c.py wrote), dense, scored on the last layer after a warm-up.
set -euo pipefail
questions=$1 model=$2 out=$3 pool=${4:-200} target=${5:-24} subsets=${6:-24} trainings=${7:-2} seed=${8:-40}
here=$(cd "$(dirname "$0")" && pwd)
data=$out/data
[ -f "$data/target.json" ] || PYTHONPATH="$here/../.." python "$here/../../tools/convert_choices.py" hellaswag "$questions" \
  --out "$data" --pool "$pool" --target "$target" --test 1 --seed "$seed"
files=(--pool "$data/pool.json" --targets.hellaswag "$data/target.json")
vlmsel warmup --model "$model" "${files[@]}" --fraction 0.2 --least 40 --preset tiny-llm --settings.train lm \
  --settings.learning_rate 1e-3 --settings.epochs 3 --out "$out/warmup"
vlmsel score --config "$here/scorers.yaml" --model "$out/warmup" --blocks last-block "${files[@]}" --out "$out/text"
vlmsel validate --run "$out/text" --study lds --subsets "$subsets" --seeds "$trainings" --out "$out/text-lds"
