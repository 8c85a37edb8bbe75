#!/usr/bin/env bash
# The paper's claims on the proving ground, on GSM8K test questions that nothing was trained on.
#   d2sd proving-ground responses.jsonl.gz --prompts math.jsonl --out runs/proving-ground   # first
#   docs/studies/claims.sh gsm8k.jsonl
set -euo pipefail
ground=${GROUND:-runs/proving-ground}
threads=${THREADS:-1}
limit=${LIMIT:-40} # answers of each temperature
first=$ground/drafters/first second=$ground/drafters/second
nodes=${NODES:-48}

[[ -e $ground/suite.jsonl ]] || d2sd regenerate "$1" --model "$ground/target" \
  --out "$ground/suite.jsonl" --temperatures 0,1 --max-new-tokens 160 --limit 128 --threads "$threads"
# temperatures from held-out training answers, greedy ones and those at 0.8
d2sd evaluate "$ground/responses.jsonl" --model "$ground/target" --drafter "$first" \
  --second-drafter "$second" --held-out 96 --fit --policies dual --threads "$threads" --dtype bfloat16

policies=block,samples,self-dual,random-dual,dual,three-level
for budget in "$nodes" 64; do
  policies+=",best-first:budget=$budget"
  for anchors in prefix alternative mixed; do
    policies+=",merged:budget=$budget:anchors=$anchors"
  done
done
policies=${policies//:anchors/,anchors}
for how in fitted none; do
  flags=$([[ $how == none ]] && echo --uncalibrated || true)
  d2sd evaluate "$ground/suite.jsonl" --model "$ground/target" --drafter "$first" \
    --second-drafter "$second" --policies "$policies" --limit "$limit" --threads "$threads" --dtype bfloat16 \
    --out "$ground/claims-$how.json" $flags
done
# one network for both passes: the second one, which learned short and long prefixes
d2sd evaluate "$ground/suite.jsonl" --model "$ground/target" --drafter "$second" --policies block,dual \
  --limit "$limit" --threads "$threads" --dtype bfloat16 --out "$(dirname "$0")/one-network.json"
python "$(dirname "$0")/claims.py" "$ground/claims-fitted.json" "$ground/claims-none.json"
