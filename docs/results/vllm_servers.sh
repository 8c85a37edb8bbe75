#!/bin/sh
# Five vLLM servers for the sweep of docs/performance.md: plain twice, two of vLLM's own methods, ours.
# usage: vllm_servers.sh TARGET SERVED [DTYPE]   in the environment of docs/vllm.md, from the repository.
# TARGET: SmolLM2-135M-Instruct as a folder; SERVED: of `d2sd export … --format vllm`. Ctrl-C ends them.
target=$1 served=$2 dtype=${3:-bfloat16}
drafters=src/d2sd/models/smollm2-135m
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_NUM_OF_RESERVED_CPU=0
trap 'kill 0' INT TERM

start() { # start PORT OPTIONS…
  port=$1
  shift
  python -m vllm.entrypoints.openai.api_server --model "$target" --served-model-name smollm2 \
    --dtype "$dtype" --max-model-len 2048 --max-num-seqs 32 --port "$port" "$@" &
}

start 8801
start 8805 # what it differs by from the first is noise
start 8802 --speculative-config \
  '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
start 8803 --speculative-config \
  "{\"method\": \"dflash\", \"model\": \"$served\", \"num_speculative_tokens\": 7}"
start 8804 --worker-cls d2sd.engines.vllm.worker.CPUTreeWorker --speculative-config \
  '{"method": "custom_class", "model": "d2sd.engines.vllm.drafter.TreeDrafter",
    "num_speculative_tokens": 24}' --additional-config \
  "{\"d2sd\": {\"first\": \"$drafters/first\", \"second\": \"$drafters/second\"}}"
wait
