"""The int8 target beside the bfloat16 one. Writes docs/results/int8.json.

python docs/results/int8.py PROMPTS [--limit N]

Both targets compiled (`d2sd tune` with and without `--quantize int8`), each with its own text. Also
says whether the drafting policies emit what plain decoding of the same target emits.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from d2sd.bench.prompts import read_prompts
from d2sd.bench.run import LOG, Order, run
from d2sd.drafters.policies import parse_policies
from d2sd.journal import Journal
from d2sd.session import ModelChoice, open_session

POLICIES = "none,best-first:budget=16,merged:budget=16,planned"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("int8.json"))
    options = parser.parse_args()
    policies = parse_policies(POLICIES)
    order = Order({"prompts": tuple(read_prompts(options.prompts, options.limit))}, tuple(policies))
    rows, figures = [], {}
    for quantize in ("none", "int8"):
        choice = ModelChoice(dtype="bfloat16", quantize=quantize)
        session = open_session(choice, policies, lambda words: None)
        assert session.is_compiled, "run d2sd tune first"
        with TemporaryDirectory() as folder:
            [section] = run(session, order, Journal(Path(folder) / LOG)).sections
        found = section.rows
        figures[quantize] = {name: asdict(one) for name, one in found.items()}
        for name, one in found.items():
            rows.append(
                [
                    "int8" if quantize == "int8" else "bfloat16",
                    name,
                    f"{one.acceptance_length.value:.2f}",
                    f"{one.tokens_per_second:.1f}",
                    f"{one.speedup.value:.2f}",
                    "yes" if one.identical == one.turns else "no",
                ]
            )
    columns = ["target", "policy", "acceptance length", "tokens/s", "speed-up", "same as none"]
    result = {
        "tables": {"int8": {"columns": columns, "rows": rows}},
        "policies": figures,
        "run": session.provenance(0),
    }
    options.out.write_text(json.dumps(result, ensure_ascii=False) + "\n")
    sys.stdout.write("\n".join("  ".join(row) for row in rows) + "\n")


main()
