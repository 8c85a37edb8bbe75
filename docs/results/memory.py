"""Memory of one long answer. Writes docs/results/memory.json.

python docs/results/memory.py [--tokens N] [--policy planned] [--eager]

Resident memory of the whole process: after the imports, after loading, and while the answer
grows, read every few milliseconds so that no peak is missed. Weights are the target's and the
drafters', each once, in their dtype. Rows are what every committed token leaves behind: keys and
values of the target (the KV cache), its features, keys and values of both drafters. What is
"allowed" counts of them the KV cache alone, and only the rows that are committed.
"""

import argparse
import json
import os
import sys
import threading
from pathlib import Path

import torch

from d2sd.decode import decode
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session

PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.005
ROOM = 300


def resident():
    """Megabytes of this process in memory, and those of them that no file backs."""
    total, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return total * PAGE / 1e6, (total - shared) * PAGE / 1e6


class Peak:
    """The most memory of its own that the process had inside the `with` block."""

    def __enter__(self):
        self.own, self._done = resident()[1], threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(EVERY):
            self.own = max(self.own, resident()[1])

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()


def of_a_token(session):
    """Bytes that a committed token leaves behind: KV cache, features, drafters' context rows."""
    target = session.target
    width = torch.finfo(target.dtype).bits // 8
    config = session.model.config
    networks = [n for n in (session.networks.first, session.networks.second) if n]
    drafters = sum(rows_of(network.config.network) for network in networks)
    features = len(target.taps) * target.hidden_size
    return {
        "kv_cache": rows_of(config) * width,
        "features": features * width,
        "drafters": drafters * width,
    }


def rows_of(config):
    """Numbers in one token's keys and values of all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def weights_of(session):
    """Bytes of the target's and the drafters' weights, every one once."""
    modules = (session.model, session.networks.first, session.networks.second)
    count = sum(weight.numel() for module in modules if module for weight in module.parameters())
    return count * torch.finfo(session.target.dtype).bits // 8


def slope(points):
    """Megabytes for every 1 000 tokens: the straight line through the points (tokens, MB)."""
    tokens, sizes = (torch.tensor(values).double() for values in zip(*points, strict=True))
    off = tokens - tokens.mean()
    return float((off * sizes).sum() / (off * off).sum() * 1000)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--policy", default="planned")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("memory.json"))
    return parser.parse_args()


def answered(session, options):
    """(tokens, resident, own) after every 200 tokens of an answer, in megabytes."""
    prompt = session.chat_prompt([{"role": "user", "content": "Count upwards from one."}])
    # sampled, so that the text goes on and does not loop
    sampling = Sampling(temperature=1.0, rng=torch.Generator().manual_seed(0))
    steps = decode(session.target, session.drafter(options.policy, 1.0), prompt, sampling)
    series, tokens = [], 0
    for step in steps:
        tokens += len(step.emitted)
        if tokens >= 200 * (len(series) + 1):
            series.append((tokens, *resident()))
        if tokens >= options.tokens:
            return series


def main():
    options = parsed()
    imported = resident()
    with Peak() as loading:
        choice = ModelChoice(options.model, dtype=options.dtype, compiled=not options.eager)
        session = open_session(choice, [options.policy], lambda words: None)
        assert session.costs.target  # measured now, if they are not yet
    loaded = resident()
    weights, token = weights_of(session), of_a_token(session)
    with Peak() as answering:
        series = answered(session, options)
    committed = session.target._cache.length
    row = sum(token.values())
    beyond = [(tokens, own - tokens * row / 1e6) for tokens, _, own in series]
    allowed = (weights + committed * token["kv_cache"]) / 1e6 + ROOM
    rows = [
        ["torch and transformers imported", *imported, ""],
        ["target, drafters and passes loaded", *loaded, ""],
        *[
            [f"{made} tokens", total, own, without]
            for (made, total, own), (_, without) in zip(series, beyond, strict=True)
        ],
    ]
    columns = ["after", "MB resident", "MB of its own", "MB without the tokens' rows"]
    rows = [[size if isinstance(size, str) else f"{size:.0f}" for size in row] for row in rows]
    result = {
        "tables": {"memory": {"columns": columns, "rows": rows}},
        "weights_mb": weights / 1e6,
        "bytes_of_a_token": token,
        "committed_tokens": committed,
        "kv_cache_mb": committed * token["kv_cache"] / 1e6,
        "room_mb": ROOM,
        "allowed_over_imports_mb": allowed,
        "peak_over_imports_mb": answering.own - imported[1],
        "peak_while_loading_over_imports_mb": loading.own - imported[1],
        "growth_mb_per_1000_tokens": slope([(tokens, own) for tokens, _, own in series]),
        "of_which_rows_mb": row / 1e3,
        "growth_without_rows_second_half": slope(beyond[len(beyond) // 2 :]),
        "while_answering_mb": series,
        "policy": options.policy,
        "compiled": session.is_compiled,
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in result.items() if k != "run"}, indent=1) + "\n")


main()
