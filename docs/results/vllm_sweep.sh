#!/bin/sh
# Loads the servers of vllm_servers.sh: one or two requests at once, then more with more prompts, so
# that no cell is over in a moment; and six times again, both plain servers and ours. Who goes first at
# a load goes by the load's place, so the loads change places from round to round.
# usage: vllm_sweep.sh FOLDER SUITES   in the environment of d2sd, from the repository.
set -e
folder=$1 suites=$2
plain=plain=http://localhost:8801 twin=plain-again=http://localhost:8805
ours=d2sd=http://localhost:8804
theirs="--base-url ngram=http://localhost:8802 --base-url dflash=http://localhost:8803"

sweep() { # sweep NAME PROMPTS_A_SUITE REQUESTS_AT_ONCE [MORE_SERVERS]
  # shellcheck disable=SC2086  (MORE_SERVERS are several words)
  d2sd bench --backend openai --base-url "$plain" --base-url "$twin" $4 --base-url "$ours" \
    --suite-dir "$suites" --suite gsm8k,math500,aime25,humaneval,mbpp,livecodebench,mt-bench,alpaca \
    --limit "$2" --max-new-tokens 48 --concurrency "$3" --out "$folder/$1"
}

sweep warm 2 2,16 "$theirs"
rm -r "$folder/warm" # a server's first steps are slow, and are not counted
sweep 1 4 1,2 "$theirs"
sweep 2 8 4,8,16,32 "$theirs"
round=3
for loads in 8,16,32,4 16,32,4,8 32,4,8,16 4,8,16,32 8,16,32,4 16,32,4,8; do
  sweep "$round" 8 "$loads"
  round=$((round + 1))
done
