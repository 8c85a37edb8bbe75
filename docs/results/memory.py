"""Memory of one long answer. Writes docs/results/memory.json.

python docs/results/memory.py [--tokens N] [--policy planned] [--eager]

Resident memory of the whole process: after the imports, after loading, and while the answer
grows. Weights are the target's and the drafters' in their dtype; the cache is what its buffers
hold at the end.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from d2sd.decode import decode
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    """Megabytes of this process in memory, and those of them that no file backs."""
    total, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return total * PAGE / 1e6, (total - shared) * PAGE / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--policy", default="planned")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("memory.json"))
    options = parser.parse_args()
    imported = resident()
    choice = ModelChoice(options.model, dtype=options.dtype, compiled=not options.eager)
    session = open_session(choice, [options.policy], lambda words: None)
    assert session.costs.target  # measured now, if they are not yet
    config = session.model.config
    width = torch.finfo(session.target.dtype).bits // 8
    count = sum(weight.numel() for weight in session.model.parameters())
    count += sum(
        w.numel()
        for n in (session.networks.first, session.networks.second)
        if n
        for w in n.parameters()
    )
    loaded = resident()
    prompt = session.chat_prompt([{"role": "user", "content": "Count upwards from one."}])
    # sampled, so that the text goes on and does not loop
    sampling = Sampling(temperature=1.0, rng=torch.Generator().manual_seed(0))
    steps = decode(session.target, session.drafter(options.policy, 1.0), prompt, sampling)
    series, tokens = [], 0
    for step in steps:
        tokens += len(step.emitted)
        if tokens >= 200 * (len(series) + 1):
            series.append([tokens, *resident()])
        if tokens >= options.tokens:
            break
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = row * width * session.target._cache.buffers[0].shape[2]
    growth = loaded[1] - imported[1]
    peak = max(row[2] for row in series)
    allowed = count * width / 1e6 + cache / 1e6 + 300
    rows = [
        ["torch and transformers imported", f"{imported[0]:.0f}", f"{imported[1]:.0f}"],
        ["target, drafters and passes loaded", f"{loaded[0]:.0f}", f"{loaded[1]:.0f}"],
        *[[f"{made} tokens", f"{total:.0f}", f"{own:.0f}"] for made, total, own in series],
    ]
    result = {
        "tables": {"memory": {"columns": ["after", "MB resident", "MB of its own"], "rows": rows}},
        "loading_mb": growth,
        "peak_over_imports_mb": peak - imported[1],
        "weights_cache_and_300_mb": allowed,
        "imports_mb": imported,
        "loaded_mb": loaded,
        "weights_mb": count * width / 1e6,
        "cache_mb": cache / 1e6,
        "while_answering_mb": series,
        "policy": options.policy,
        "compiled": session.is_compiled,
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in result.items() if k != "run"}, indent=1) + "\n")


main()
