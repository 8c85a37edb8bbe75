#!/bin/sh
# Acceptance on the evaluation suites at temperatures 0 and 1; goes on where the last sitting ended.
#   sh scripts/gpu/evaluate.sh SUITES FOLDER MINUTES FIRST SECOND LIMIT [options of both commands]
# FIRST and SECOND are folders of drafters, LIMIT the answers of each suite. Leaves answers-T.packed
# and evaluation-T.json in FOLDER.
set -eu
suites=$1 folder=$2 minutes=$3 first=$4 second=$5 limit=$6
shift 6
python=${PYTHON:-python3}
mkdir -p "$folder"
for temperature in 0 1; do
  answers="$folder/answers-$temperature.packed" result="$folder/evaluation-$temperature.json"
  "$python" -m d2sd.cli regenerate "$suites"/*.jsonl --out "$answers" --limit "$limit" \
    --temperatures "$temperature" --max-new-tokens "${MAX_NEW_TOKENS:-256}" "$@"
  [ -f "$result" ] || timeout "${minutes}m" "$python" -m d2sd.cli evaluate "$answers" \
    --drafter "$first" --second-drafter "$second" --out "$result" \
    --policies block,dual:branches=4,merged:budget=64,best-first:budget=64 "$@" || {
    status=$?
    [ "$status" -ne 124 ] || echo "the time is over: give the same command again" >&2
    exit "$status"
  }
done
