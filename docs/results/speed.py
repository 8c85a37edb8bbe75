"""Tokens a second of every policy on every suite, in one process. Writes docs/results/speed.json.

python docs/results/speed.py SUITES [--limit N] [--temperatures 0,1] [--dtype bfloat16] …

SUITES is a folder of prompt files (JSONL), one a suite. All policies run through the same target,
prompt by prompt in rotating order (`d2sd.bench.measure`); every suite begins with drafters that
have learned nothing. A prompt's speed-up is its policy's tokens a second over `none`'s.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from d2sd.bench.measure import Workload, measure
from d2sd.bench.prompts import read_prompts
from d2sd.drafters.policies import parse_policies
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session

POLICIES = (
    "none,ngram,block,best-first:budget=16,best-first:budget=32,dual,"
    "merged:budget=16,merged:budget=32,planned"
)


def say(words):
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def suite(session, policies, prompts, options, temperature):
    workload = Workload(
        tuple(prompts), options.max_new_tokens, Sampling(temperature=temperature), options.seed
    )
    comparison = measure(session, policies, workload)
    rows = {}
    for name, figures in comparison.policies.items():
        split = comparison.splits[name]
        parts = {part: split.milliseconds(part) for part in split.seconds}
        rows[name] = {
            **asdict(figures),
            "step_ms": split.milliseconds(),
            "stages_ms": parts,
            "overhead": split.overhead,
        }
    return rows


def table(suites, temperature, policies):
    of = {name: rows for (name, t), rows in suites.items() if t == temperature}
    lines = [
        [name, *(f"{rows[p]['speedup_over_none']:.2f}" for p in policies)]
        for name, rows in of.items()
    ]
    for label, figure, digits in (
        ("mean speed-up", "speedup_over_none", 2),
        ("mean acceptance length", "acceptance_length", 2),
        ("mean nodes a step", "nodes_per_step", 1),
        ("mean tokens/s", "tokens_per_second", 1),
    ):
        means = [statistics.mean(rows[p][figure] for rows in of.values()) for p in policies]
        lines.append([label, *(f"{mean:.{digits}f}" for mean in means)])
    return {"columns": ["suite", *policies], "rows": lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", type=Path)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("speed.json"))
    options = parser.parse_args()
    policies = parse_policies(options.policies)
    choice = ModelChoice(options.model, dtype=options.dtype, compiled=not options.eager)
    session = open_session(choice, policies, say)
    suites = {}
    for temperature in map(float, options.temperatures.split(",")):
        for file in sorted(options.suites.glob("*.jsonl")):
            prompts = read_prompts(file, options.limit)
            rows = suite(session, policies, prompts, options, temperature)
            suites[file.stem, temperature] = rows
            fastest = max(rows, key=lambda name: rows[name]["tokens_per_second"])
            planned = rows.get("planned", rows[fastest])["speedup_over_none"]
            best = rows[fastest]["speedup_over_none"]
            say(
                f"{file.stem} at T = {temperature:g}: planned {planned:.2f}, "
                f"best {fastest} {best:.2f}"
            )
    names = [policy.text for policy in policies]
    temperatures = sorted({temperature for _, temperature in suites})
    result = {
        "tables": {f"T = {t:g}": table(suites, t, names) for t in temperatures},
        "prompts_a_suite": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "compiled": session.is_compiled,
        "threads": torch.get_num_threads(),
        "costs": session.costs.to_json(),
        "suites": [
            {"suite": name, "temperature": t, "policies": rows}
            for (name, t), rows in suites.items()
        ],
        "run": session.provenance(options.seed),
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False) + "\n")


main()
