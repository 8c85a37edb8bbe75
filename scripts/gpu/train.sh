#!/bin/sh
# One sitting of one stage (first, second, one or eagle): goes on from FOLDER/STAGE, and leaves
# there what the next sitting needs or, at the end, the drafter as out.tar in parts.
#   sh scripts/gpu/train.sh STAGE RESPONSES FOLDER MINUTES [more options of d2sd train]
# D2SD_WORK: where the work folders lie (runs/gpu). MIB, TOTAL: limits of a file and of all.
set -eu
stage=$1 responses=$2 folder=$3 minutes=$4
shift 4
python=${PYTHON:-python3} scripts=$(dirname "$0")
work=${D2SD_WORK:-runs/gpu} mib=${MIB:-15} total=${TOTAL:-58}
out="$work/$stage/out"

unpack() { # the drafter of another stage, if it is not here already
  [ -d "$work/$1/out" ] || [ ! -f "$folder/$1/out.tar.parts.json" ] || {
    mkdir -p "$work/$1"
    "$python" "$scripts/shards.py" join "$folder/$1/out.tar.parts.json" "$work/$1/out.tar"
    tar -xf "$work/$1/out.tar" -C "$work/$1"
  }
}

if [ -f "$folder/$stage/out.tar.parts.json" ] && [ ! -d "$work/$stage" ]; then
  echo "stage $stage is done: $folder/$stage holds its drafter" >&2
  exit 0
fi
if [ "$stage" = second ] || [ "$stage" = eagle ]; then
  unpack first
  [ ! -d "$work/first/out/first" ] || set -- --first "$work/first/out/first" "$@"
fi
"$python" "$scripts/sitting.py" restore "$folder/$stage" "$work/$stage"
"$python" -m d2sd.cli train "$responses" --stage "$stage" --work "$work/$stage" --out "$out" \
  --minutes "$minutes" "$@"
if [ -d "$out" ]; then
  tar -cf "$work/$stage/out.tar" -C "$work/$stage" out
  rm -rf "$folder/$stage"
  "$python" "$scripts/shards.py" split "$work/$stage/out.tar" "$folder/$stage" --mib "$mib"
  cp "$work/$stage/training.jsonl" "$folder/$stage/"
else
  "$python" "$scripts/sitting.py" keep "$work/$stage" "$folder/$stage" --mib "$mib" --total "$total"
fi
