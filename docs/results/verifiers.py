"""How many tokens a step emits under each verifier: counts of a bench's log, no times.

d2sd bench --model proving-ground --suite sample --max-new-tokens 64 --temperature 0.5,1,1.5 \
  --policies none,… --dtype float32 --eager --out FOLDER    (verifiers.json lists the policies)
python docs/results/verifiers.py FOLDER/log.jsonl > docs/results/verifiers.json

Intervals are 95 % of 2000 resamplings of the prompts.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

began, *trials = [json.loads(line)["holds"] for line in Path(sys.argv[1]).read_text().splitlines()]
temperatures = sorted({trial["temperature"] for trial in trials})
counts = defaultdict(list)  # (contender, temperature) -> tokens, steps and nodes of each prompt
for trial in trials:
    for name, turns in trial["answers"].items():
        steps = [turn["steps"] for turn in turns]
        counts[name, trial["temperature"]].append(
            tuple(
                sum(each)
                for each in zip(
                    *((sum(s["emitted"]), len(s["emitted"]), sum(s["nodes"])) for s in steps),
                    strict=True,
                )
            )
        )
rng = random.Random(0)


def length(prompts: list[tuple[int, int, int]]) -> float:
    return sum(tokens for tokens, _, _ in prompts) / sum(steps for _, steps, _ in prompts)


def cell(prompts: list[tuple[int, int, int]]) -> str:
    drawn = sorted(length(rng.choices(prompts, k=len(prompts))) for _ in range(2000))
    return f"{length(prompts):.2f} ({drawn[50]:.2f} to {drawn[1949]:.2f})"


def nodes(name: str) -> str:
    every = [prompt for t in temperatures for prompt in counts[name, t]]
    return f"{sum(n for _, _, n in every) / sum(s for _, s, _ in every):.1f}"


names = [name for name in dict.fromkeys(name for name, _ in counts) if name != "none"]
result = {
    "policies": names,
    "prompts": {str(t): len(counts[names[0], t]) for t in temperatures},
    "counts": {f"{name} at {t:g}": counts[name, t] for name in names for t in temperatures},
    "tables": {
        "verifiers": {
            "columns": ["policy", "nodes a step", *(f"T = {t:g}" for t in temperatures)],
            "rows": [
                [name, nodes(name), *(cell(counts[name, t]) for t in temperatures)]
                for name in names
            ],
        }
    },
}
sys.stdout.write(json.dumps(result) + "\n")
