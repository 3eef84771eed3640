#!/usr/bin/env bash
# bash recipes/easy_vqa/run.sh easy_vqa.tar.gz runs/easy_vqa [seeds]
# Converts easy-VQA, spoils 20 % of the pool's answers per seed, and runs align, score, select, tune and evaluate.
set -euo pipefail
archive=$1 out=$2 seeds=${3:-3}
here=$(cd "$(dirname "$0")" && pwd)
for seed in $(seq 0 $((seeds - 1))); do
  data=$out/data$seed run=$out/seed$seed
  [ -f "$data/annotations.json" ] ||
    python "$here/../../tools/convert_easy_vqa.py" "$archive" --out "$data" --seed "$seed"
  vlmsel align --config "$here/align.yaml" --settings.seed "$seed" --out "$run/align" \
    --data "$data/captions.json" --images "$data/images"
  vlmsel score --config "$here/score.yaml" --seed "$seed" --model "$run/align" --pool "$data/pool.json" \
    --images "$data/images" --targets.easy_vqa "$data/target.json" --out "$run/score"
  evaluate() {
    vlmsel evaluate --config "$here/evaluate.yaml" --model "$1" --questions "$data/questions.json" \
      --annotations "$data/annotations.json" --images "$data/images/test" --out "$run/evaluate/$2/easy_vqa"
  }
  evaluate "$run/align" "not tuned"
  for scorer in Random TracIn TracIn.scaled DataInf LiSSA HyperINF full_pool; do
    subset=$run/selected/$scorer.json
    if [ "$scorer" = full_pool ]; then
      subset=$data/pool.json
    else
      vlmsel select --scores "$run/score/scores.parquet" --pool "$data/pool.json" --scorer "$scorer" \
        --rule top --fraction 0.2 --out "$subset"
    fi
    vlmsel tune --config "$here/tune.yaml" --settings.seed "$seed" --model "$run/align" --data "$subset" \
      --images "$data/images" --out "$run/tune/$scorer"
    evaluate "$run/tune/$scorer" "$scorer"
  done
done
python "$here/../../tools/result_table.py" "$out"
