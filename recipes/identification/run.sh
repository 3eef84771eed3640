#!/usr/bin/env bash
# bash recipes/identification/run.sh stories260K FOLDER runs/identification
# DataInf's identification study; FOLDER holds grammars_train.jsonl and grammars_test.jsonl. stories260K is a folder with a
# tokenizer (tools/convert_llama2c.py). The first training wants a GPU; a model from it can be put into runs/identification/base.
set -euo pipefail
tokenizer=$1 study=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
tools=$here/../../tools data=$out/data
python "$tools/convert_identification.py" "$study"/grammars_{train,test}.jsonl --out "$data" --held_out 10
[ -f "$data/sentences.json" ] || python "$tools/identification_sentences.py" "$data/grammars_train.json" --out "$data/sentences.json"
[ -d "$out/fresh" ] || python "$tools/new_llama.py" "$tokenizer" "$out/fresh"
[ -f "$out/base/model/vlmsel_config.json" ] ||
  vlmsel tune --config "$here/base.yaml" --model "$out/fresh" --data "$data/sentences.json" --out "$out/base"
vlmsel tune --config "$here/tune.yaml" --model "$out/base" --data "$data/grammars_train.json" --out "$out/tune"
python "$tools/exact_match.py" "$out/tune" "$data/grammars_test.json"
vlmsel score --config "$here/score.yaml" --model "$out/tune" --pool "$data/grammars_train.json" \
  --targets.test "$data/grammars_test.json" --out "$out/score"
python "$tools/identification_table.py" "$out/score/scores.parquet" --test "$data/grammars_test.json"
