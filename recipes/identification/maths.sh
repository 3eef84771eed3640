#!/usr/bin/env bash
# bash recipes/identification/maths.sh stories260K FOLDER runs/maths
# DataInf's maths problems, with reasons and without, for a small causal language model (a folder; tools/convert_llama2c.py)
# tuned on the 900 for 10 epochs (3 and 10 were tried on ten held-out problems per class); FOLDER holds
# math_with_reason_train.jsonl and math_with_reason_test.jsonl.
set -euo pipefail
model=$1 study=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
tools=$here/../../tools
for kind in with_reasons without_reasons; do
  data=$out/$kind/data left_out=()
  [ "$kind" = with_reasons ] || left_out=(--without_reasons)
  python "$tools/convert_identification.py" "$study"/math_with_reason_{train,test}.jsonl --out "$data" "${left_out[@]}"
  train=$data/math_with_reason_train.json test=$data/math_with_reason_test.json
  vlmsel tune --config "$here/tune.yaml" --settings.epochs 10 --model "$model" --data "$train" \
    --out "$out/$kind/tune"
  python "$tools/exact_match.py" "$out/$kind/tune" "$test"
  vlmsel score --config "$here/score.yaml" --model "$out/$kind/tune" --pool "$train" --targets.test "$test" \
    --out "$out/$kind/score"
  python "$tools/identification_table.py" "$out/$kind/score/scores.parquet" --test "$test"
done
