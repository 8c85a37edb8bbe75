#!/usr/bin/env bash
# The arms of the training studies on the proving ground, one after the other.
#   d2sd proving-ground responses.jsonl.gz --out runs/proving-ground   # first
#   docs/studies/arms.sh [ARM...]                                      # all, or the ones named
# An arm that is done is left as it is; a killed one goes on. collect.py makes the tables.
set -euo pipefail
ground=${GROUND:-runs/proving-ground}
threads=${THREADS:-1}
steps=${STEPS:-500}

arm() { # NAME STAGE RESPONSES OPTION...
  local name=$1 stage=$2 responses=$3 folder=$ground/study/$1
  shift 3
  [[ -n ${only:-} && " $only " != *" $name "* ]] && return
  [[ -e $folder/out/recipe.json ]] && return
  echo "== $name"
  mkdir -p "$folder"
  d2sd train "$responses" --model "$ground/target" --recipe proving-ground --stage "$stage" \
    --work "$folder" --out "$folder/out" --features stored --threads "$threads" \
    --set "first.steps=$steps" --set "second.steps=$steps" --set "one.steps=$((2 * steps))" \
    --set evaluate_every=100 "$@"
  rm -rf "$folder/store" # gigabytes, and made again in a minute
}

only=$*
all=$ground/responses.jsonl
for kind in greedy sampled; do
  python "$(dirname "$0")/part.py" "$all" "$kind" "$ground/study/$kind.jsonl"
done

arm base first "$all"
# what a position teaches
arm hard-labels first "$all" --set first.objective=decayed:tau=7
arm adamw first "$all" --set first.optimizer=adamw
arm random-start first "$all" --set start=random
arm uncompiled first "$all" --set compile=false
arm none-of-them first "$all" --set first.objective=decayed:tau=7 --set first.optimizer=adamw \
  --set start=random --set compile=false
# losses
for objective in dpace dspark ce-streak kl:tau=7; do
  arm "loss-${objective%%:*}" first "$all" --set "first.objective=$objective"
done
# shape
arm layers-1 first "$all" --set layers=1
arm layers-3 first "$all" --set layers=3
arm block-8 first "$all" --set block_size=8
arm one-tap first "$all" --set taps=[4]
# labels of greedy against sampled text
arm greedy-text first "$ground/study/greedy.jsonl"
arm sampled-text first "$ground/study/sampled.jsonl"
# one network or two, at equal steps
arm two both "$all"
arm one one "$all"
