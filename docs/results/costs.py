"""What passes cost here, and what better drafters would make of it. Writes docs/results/costs.json.

python docs/results/costs.py [--dtype bfloat16]

Costs are those that `d2sd tune` measured and stored.
"""

import argparse
import json
from pathlib import Path

from d2sd.session import ModelChoice, open_session

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("costs.json"))
    options = parser.parse_args()
    session = open_session(ModelChoice(options.model, dtype=options.dtype), ["planned"])
    result = {
        "tables": {"costs": prices(session.costs), "predicted": predicted(session.costs)},
        "compiled": session.is_compiled,
        "costs": session.costs.to_json(),
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False) + "\n")


main()
