"""How many tokens a step emits under each verifier: counts of a bench's log, no times.

d2sd bench --model proving-ground --suite sample --limit 10 --max-new-tokens 64 \
  --temperature 0.5,1,1.5 --dtype float32 --eager --policies none,… --out FOLDER
python docs/results/verifiers.py FOLDER/log.jsonl > docs/results/verifiers.json

The policies are those that verifiers.json lists. Intervals are 95 % of 2000 resamplings of prompts.
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


def ratio(ours: str, theirs: str, temperature: float) -> str:
    """Paired: both are resampled by the same prompts."""
    pairs = list(zip(counts[ours, temperature], counts[theirs, temperature], strict=True))

    def of(chosen: list) -> float:
        return length([a for a, _ in chosen]) / length([b for _, b in chosen])

    drawn = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
    return f"{of(pairs):.2f} ({drawn[50]:.2f} to {drawn[1949]:.2f})"


def nodes(name: str) -> str:
    every = [prompt for t in temperatures for prompt in counts[name, t]]
    return f"{sum(n for _, _, n in every) / sum(s for _, s, _ in every):.1f}"


PAIRS = (
    ("drawn:verifier=block", "drawn:verifier=token"),
    ("drawn-tree", "drawn-tree:verifier=multi-round"),
    ("drawn:verifier=block", "block"),
    ("drawn-tree", "best-first:budget=24"),
    ("hybrid", "best-first:budget=24"),
)
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
        },
        "verifiers-paired": {
            "columns": ["policies", *(f"T = {t:g}" for t in temperatures)],
            "rows": [[f"{a} / {b}", *(ratio(a, b, t) for t in temperatures)] for a, b in PAIRS],
        },
    },
}
sys.stdout.write(json.dumps(result) + "\n")
