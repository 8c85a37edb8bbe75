#!/usr/bin/env bash
# Drafters that learned from greedy, from sampled and from both texts, on greedy and sampled answers.
#   STEPS=300 docs/studies/arms.sh greedy-text sampled-text   # first; and claims.sh, for the suite
set -euo pipefail
ground=${GROUND:-runs/proving-ground}
threads=${THREADS:-1}
for arm in greedy-text sampled-text; do
  [[ -e $ground/study/$arm.json ]] || d2sd evaluate "$ground/suite.jsonl" --model "$ground/target" \
    --drafter "$ground/study/$arm/out/first" --policies block,best-first:budget=32 --uncalibrated \
    --dtype bfloat16 --limit 40 --threads "$threads" --out "$ground/study/$arm.json"
done
python "$(dirname "$0")/texts.py" "$ground/study"
