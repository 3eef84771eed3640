#!/usr/bin/env bash
# bash recipes/identification/run.sh stories260K.bin tok512.bin FOLDER runs/identification
# DataInf's identification study on a tiny language model; FOLDER holds grammars_train.jsonl and grammars_test.jsonl.
set -euo pipefail
checkpoint=$1 tokenizer=$2 study=$3 out=$4
here=$(cd "$(dirname "$0")" && pwd)
tools=$here/../../tools data=$out/data
[ -d "$out/stories260K" ] || python "$tools/convert_llama2c.py" "$checkpoint" "$tokenizer" "$out/stories260K"
python "$tools/convert_identification.py" "$study"/grammars_{train,test}.jsonl --out "$data"
vlmsel tune --config "$here/tune.yaml" --model "$out/stories260K" --data "$data/grammars_train.json" --out "$out/tune"
vlmsel score --config "$here/score.yaml" --model "$out/tune" --pool "$data/grammars_train.json" \
  --targets.test "$data/grammars_test.json" --out "$out/score"
python "$tools/identification_table.py" "$out/score/scores.parquet" --test "$data/grammars_test.json"
