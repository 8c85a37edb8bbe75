#!/bin/sh
# All steps but the target's, at tiny size on a CPU, with the small model that comes with d2sd.
#   sh scripts/gpu/rehearse.sh FOLDER [DATA]
# DATA holds smollm2/prompts.jsonl and eval/ (default: ../shared/data).
set -eu
folder=$1 data=${2:-../shared/data} scripts=$(dirname "$0")
python=${PYTHON:-python3}
here="--model proving-ground --device cpu --threads 1"
tiny="--set first.steps=6 --set second.steps=4 --set eagle.steps=3 --set evaluate_every=2
  --set layers=1 --set intermediate_size=64 --set draft_vocab_size=256 --set validation=2
  --set sequences_per_batch=4 --set anchors_per_sequence=4 --set block_size=4
  --set compile=false --recipe default"
export D2SD_WORK="$folder/work" MIB=1 TOTAL=4 MAX_NEW_TOKENS=16

mkdir -p "$folder/suites"
echo "== prompts"
"$python" "$scripts/prompts.py" "$data/smollm2/prompts.jsonl" "$data/eval" \
  "$folder/prompts.jsonl" --limit 24
echo "== responses, in two sittings"
for minutes in 0 5; do
  sh "$scripts/responses.sh" "$folder/prompts.jsonl" "$folder/responses" $minutes $here \
    --batch 12 --max-new-tokens 12 --max-prompt-tokens 400
done
for stage in first second eagle; do
  echo "== train $stage, in two sittings, the second on a bare machine"
  for minutes in 0 5; do
    sh "$scripts/train.sh" $stage "$folder/responses/responses.packed" "$folder/training" \
      $minutes $here $tiny
    [ $minutes != 0 ] || rm -r "$D2SD_WORK/$stage"
  done
done
echo "== evaluate"
head -n 2 "$data/eval/alpaca.jsonl" >"$folder/suites/alpaca.jsonl"
sh "$scripts/evaluate.sh" "$folder/suites" "$folder/evaluation" 5 \
  "$D2SD_WORK/first/out/first" "$D2SD_WORK/second/out/second" 2 \
  --model proving-ground --device cpu --threads 1
[ ! -f "$scripts/speed.py" ] || {
  echo "== speed"
  "$python" "$scripts/speed.py" "$folder/speed" --device cpu --tiny
}
ls -l "$folder"/*/
