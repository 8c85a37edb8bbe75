"""Both drafters and tree verification inside a stock vLLM: `docs/vllm.md` says how to run it."""
