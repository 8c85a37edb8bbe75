#!/usr/bin/env bash
# The arms of the training studies on the proving ground, one after the other.
#   d2sd proving-ground responses.jsonl.gz --out runs/proving-ground   # first
#   docs/studies/arms.sh [ARM...]                                      # all, or the ones named
# An arm that is done is left as it is; a killed one goes on. collect.py makes the tables.
set -euo pipefail
ground=${GROUND:-runs/proving-ground}
threads=${THREADS:-1}
steps=${STEPS:-400}
features=${FEATURES:-online}

arm() { # NAME STAGE RESPONSES OPTION...
  local name=$1 stage=$2 responses=$3 folder=$ground/study/$1
  shift 3
  [[ -n ${only:-} && " $only " != *" $name "* ]] && return
  [[ -e $folder/out/recipe.json ]] && return
  echo "== $name"
  mkdir -p "$folder"
  d2sd train "$responses" --model "$ground/target" --recipe proving-ground --stage "$stage" \
    --work "$folder" --out "$folder/out" --features "$features" --threads "$threads" \
    --set "first.steps=$steps" --set "second.steps=$steps" --set "one.steps=$((2 * steps))" \
    --set evaluate_every=200 "$@"
}

only=$*
all=$ground/responses.jsonl
for kind in greedy sampled; do
  python "$(dirname "$0")/part.py" "$all" "$kind" "$ground/study/$kind.jsonl"
done

# what a position teaches; "base" has every lever
arm base first "$all"
arm hard-labels first "$all" --set first.objective=decayed:tau=7
arm adamw first "$all" --set first.optimizer=adamw
arm random-start first "$all" --set start=random
arm none-of-them first "$all" --set first.objective=decayed:tau=7 --set first.optimizer=adamw \
  --set start=random
# losses
arm loss-dpace first "$all" --set first.objective=dpace
arm loss-dspark first "$all" --set first.objective=dspark:tau=7
arm loss-ce-streak first "$all" --set first.objective=ce-streak
# shape
arm layers-1 first "$all" --set layers=1
arm layers-3 first "$all" --set layers=3
arm block-8 first "$all" --set block_size=8
# labels of greedy against sampled text
arm greedy-text first "$ground/study/greedy.jsonl"
arm sampled-text first "$ground/study/sampled.jsonl"
# one network or two, at equal steps in all; run with STEPS=250
arm two both "$all"
arm one one "$all"
