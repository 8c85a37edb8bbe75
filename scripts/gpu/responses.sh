#!/bin/sh
# The target answers prompts, packed; goes on where FOLDER/responses.packed ends.
#   sh scripts/gpu/responses.sh PROMPTS.jsonl FOLDER MINUTES [more options of d2sd regenerate]
set -eu
prompts=$1 folder=$2 minutes=$3
shift 3
python=${PYTHON:-python3}
mkdir -p "$folder"
"$python" -m d2sd.cli regenerate "$prompts" --out "$folder/responses.packed" \
  --minutes "$minutes" --dtype bfloat16 --batch 1024 --max-new-tokens 320 \
  --max-prompt-tokens 900 --temperatures 0,0,0.8,0,0,1.0 "$@"
