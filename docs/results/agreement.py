"""Do `d2sd evaluate` and real decoding agree? Prints one JSON object.

python docs/results/agreement.py SUITES PROMPTS_A_SUITE NEW_TOKENS > docs/results/agreement.json

SUITES is a folder of prompt files. Every prompt is decoded with each policy, greedy and at
temperature 1; the very answer that came out is then replayed as evaluate replays it. bfloat16, the
shipped drafters.
"""

import json
import sys
from pathlib import Path

import torch

from d2sd.bench.prompts import read_prompts
from d2sd.bench.replay import recited, replay
from d2sd.drafters.policies import parse_policy
from d2sd.generate import Request, generate
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session
from d2sd.train.responses import Response

POLICIES = ("block", "dual", "merged:budget=64")
SUITES = ("gsm8k", "math500", "aime25", "humaneval", "mbpp", "livecodebench", "mt_bench", "alpaca")

folder, count, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
session = open_session(ModelChoice("smollm2-135m", dtype="bfloat16"), POLICIES)
totals = {}
for suite in SUITES:
    for number, prompt in enumerate(read_prompts(folder / f"{suite}.jsonl")[:count]):
        ids = session.chat_prompt([{"role": "user", "content": prompt.turns[0]}])
        for temperature in (0.0, 1.0):
            for name in POLICIES:
                draws = Sampling(temperature, rng=torch.Generator().manual_seed(number))
                request = Request(ids, draws, limit, session.stop_tokens)
                session.target.prefill(ids[:1])
                answer = generate(
                    session.target, session.drafter(name, temperature), request, session.tokenizer
                )
                response = Response(ids, answer.token_ids, temperature)
                again = replay(session, response, recited(session, response), parse_policy(name))
                total = totals.setdefault((f"{temperature:g}", name), [0, 0, 0])
                total[0] += answer.new_tokens
                total[1] += answer.steps
                total[2] += len(again.steps)
rows = [
    [
        temperature,
        name,
        f"{tokens / decoded:.3f}",
        f"{tokens / replayed:.3f}",
        f"{100 * (decoded / replayed - 1):+.1f} %",
    ]
    for (temperature, name), (tokens, decoded, replayed) in sorted(totals.items())
]
result = {
    "suites": SUITES,
    "prompts_a_suite": count,
    "new_tokens": limit,
    "totals": {
        f"T={temperature} {name}": {"tokens": a, "decoding_steps": b, "replay_steps": c}
        for (temperature, name), (a, b, c) in totals.items()
    },
    "tables": {
        "agreement": {
            "columns": ["temperature", "policy", "decoding", "evaluate", "difference"],
            "rows": rows,
        }
    },
    "run": session.provenance(0),
}
sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
