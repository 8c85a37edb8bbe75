"""Plain decoding against transformers' own generate. Writes docs/results/generate.json.

python docs/results/generate.py PROMPTS [--limit N] [--dtype bfloat16] [--threads N]

The same weights, dtype and prompts in one process, turn by turn: `generate` as it comes, greedy
and with its KV cache; the policy `none` through the compiled target; the policy `none` through the
eager one. Times include the prefill on all sides.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from d2sd.bench.prompts import read_prompts
from d2sd.generate import Request, generate
from d2sd.session import ModelChoice, open_session


def ours(session, ids, options):
    session.target.prefill(ids[:1])  # empties the cache
    request = Request(ids, max_new_tokens=options.max_new_tokens)
    start = time.perf_counter()
    answer = generate(session.target, session.drafter("none"), request, session.tokenizer)
    return answer.token_ids, time.perf_counter() - start


def theirs(model, ids, options):
    prompt = torch.tensor([ids])
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    seconds = time.perf_counter() - start
    return tuple(output[0, len(ids) :].tolist()), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("generate.json"))
    options = parser.parse_args()
    choice = ModelChoice(options.model, dtype=options.dtype)
    compiled = open_session(choice, ["none"])
    eager = open_session(ModelChoice(**{**asdict(choice), "compiled": False}), ["none"])
    assert compiled.is_compiled, "run d2sd tune first"
    prompts = read_prompts(options.prompts, options.limit)
    ways = {
        "transformers generate": lambda ids: theirs(eager.model, ids, options),
        "none, eager": lambda ids: ours(eager, ids, options),
        "none, compiled": lambda ids: ours(compiled, ids, options),
    }
    speeds = {name: [] for name in ways}
    same = dict.fromkeys(ways, 0)
    for number, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up
        ids = compiled.chat_prompt([{"role": "user", "content": prompt.turns[0]}])
        order = [*ways][number % 3 :] + [*ways][: number % 3]
        answers = {name: ways[name](ids) for name in order}
        if number == 0:
            continue
        for name, (tokens, seconds) in answers.items():
            speeds[name].append(len(tokens) / seconds)
            same[name] += tokens == answers["transformers generate"][0]
    base = speeds["transformers generate"]
    rows = []
    for name, found in speeds.items():
        ratios = [speed / plain for speed, plain in zip(found, base, strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(found):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{same[name]} of {len(prompts)}",
            ]
        )
    columns = ["way", "tokens/s", "ratio", "spread", "same tokens"]
    result = {
        "tables": {"generate": {"columns": columns, "rows": rows}},
        "tokens_per_second": speeds,
        "run": compiled.provenance(0),
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    sys.stdout.write("\n".join("  ".join(row) for row in rows) + "\n")


main()
