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
from d2sd.costs import CostTable
from d2sd.drafters.policies import parse_policies
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session
from d2sd.stages import PASSES

POLICIES = (
    "none,ngram,block,best-first:budget=16,best-first:budget=32,dual,"
    "merged:budget=16,merged:budget=32,planned"
)


NAMES = {0.0: "greedy", 1.0: "sampled"}


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


def summary(suites, temperature, policies):
    """One row a policy: means over the suites."""
    of = [rows for (_, t), rows in suites.items() if t == temperature]
    lines = []
    for policy in policies:
        rows = [suite[policy] for suite in of]
        ratios = [row["speedup_over_none"] for row in rows]
        lines.append(
            [
                policy,
                f"{statistics.mean(row['acceptance_length'] for row in rows):.2f}",
                f"{statistics.mean(row['nodes_per_step'] for row in rows):.1f}",
                f"{statistics.mean(row['tokens_per_second'] for row in rows):.1f}",
                f"{statistics.mean(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            ]
        )
    columns = ["policy", "acceptance length", "nodes a step", "tokens/s", "speed-up", "by suite"]
    return {"columns": columns, "rows": lines}


def stages(suites, temperature, policies):
    """Milliseconds of a step, by its parts, over all suites."""
    of = [rows for (_, t), rows in suites.items() if t == temperature]
    parts = list(of[0][policies[0]]["stages_ms"])
    lines = []
    for policy in policies:
        rows = [suite[policy] for suite in of]
        steps = sum(row["steps"] for row in rows)
        mean = {
            part: sum(row["stages_ms"][part] * row["steps"] for row in rows) / steps
            for part in parts
        }
        total = sum(mean.values())
        outside = 1 - sum(mean[part] for part in PASSES) / total
        lines.append(
            [
                policy,
                *(f"{mean[part]:.2f}" for part in parts),
                f"{total:.1f}",
                f"{100 * outside:.1f} %",
            ]
        )
    return {"columns": ["policy", *parts, "step", "outside the passes"], "rows": lines}


AIMS = (
    # policy, acceptance length aimed at, nodes scored, rows of the second pass
    ("block", 3.5, 16, 0),
    ("dual", 4.7, 64, 4),
    ("merged", 5.0, 65, 4),
    ("merged", 5.0, 33, 4),
)


def predicted(costs, context=512):
    """What the cost table says of drafters that reach the aims of training."""
    plain = costs.target_seconds(1, context) + costs.overhead
    lines = []
    for policy, aim, nodes, rows in AIMS:
        step = costs.target_seconds(nodes, context) + costs.first_seconds(context) + costs.overhead
        step += costs.second_seconds(context, rows) if rows else 0.0
        ratio = aim * plain / step
        lines.append([policy, f"{aim:.1f}", str(nodes), f"{1000 * step:.1f}", f"{ratio:.2f}"])
    columns = ["policy", "acceptance length aimed at", "nodes", "step in ms", "predicted speed-up"]
    return {"columns": columns, "rows": lines}


def prices(costs):
    """The cost table in milliseconds."""
    columns = ["nodes", *(f"{context} tokens" for context in costs.contexts)]
    rows = [
        [str(nodes), *(f"{1000 * seconds:.1f}" for seconds in row)]
        for nodes, row in zip(costs.nodes, costs.target, strict=True)
    ]
    for name, table in (("first pass", costs.first), ("second pass", costs.second)):
        for count, row in zip(costs.rows, table, strict=True):
            if count in (1, 4):
                label = f"{name}, {count} row{'s' if count > 1 else ''}"
                rows.append([label, *(f"{1000 * seconds:.1f}" for seconds in row)])
    return {"columns": columns, "rows": rows}


def tables(suites, costs):
    """All of them, by name."""
    temperatures = sorted({temperature for _, temperature in suites})
    names = list(next(iter(suites.values())))
    return {
        **{NAMES.get(t, f"t{t:g}"): table(suites, t, names) for t in temperatures},
        "summary": summary(suites, temperatures[0], names),
        "stages": stages(suites, temperatures[0], names),
        "costs": prices(costs),
        "predicted": predicted(costs),
    }


def again(file):
    """The tables of a finished run made anew."""
    result = json.loads(file.read_text())
    suites = {(one["suite"], one["temperature"]): one["policies"] for one in result["suites"]}
    result["tables"] = tables(suites, CostTable.from_json(result["costs"]))
    file.write_text(json.dumps(result, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", type=Path, help="or a JSON of this script: its tables anew")
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("speed.json"))
    options = parser.parse_args()
    if options.suites.suffix == ".json":
        return again(options.suites)
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
    result = {
        "tables": tables(suites, session.costs),
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
