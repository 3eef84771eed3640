#!/usr/bin/env bash
# The whole job on LLaVA's data with CLIP ViT-L/14-336 and Llama-2-7B. Run it in a folder that holds the files named in
# the first line of each YAML beside this script (all of them public downloads).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for step in align score select tune evaluate; do
  eval "$(head -n 1 "$here/$step.yaml" | sed -e 's/^# //' -e "s#recipes/llava/#$here/#")"
done
