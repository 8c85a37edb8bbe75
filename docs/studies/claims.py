"""The paper's claims, and ours, on the proving ground. Writes docs/studies/claims.json.

python docs/studies/claims.py CALIBRATED.json UNCALIBRATED.json

Both are outputs of d2sd evaluate over the same answers with the same policies, as claims.sh makes
them; the second one with --uncalibrated.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent

WORDS = {
    "block": "one pass, one chain (DFlash)",
    "samples": "the chain and 4 samples of the same pass",
    "self-dual": "dual, the first drafter in both passes",
    "random-dual": "dual, boundaries at random",
    "dual": "dual (D²SD)",
    "three-level": "a third pass",
    "best-first": "best-first (DDTree)",
    "merged:prefix": "merged, anchored on prefixes",
    "merged:alternative": "merged, anchored on alternatives",
    "merged": "merged, mixed anchors",
}


def words(policy):
    name, _, options = policy.partition(":")
    anchors = [o.partition("=")[2] for o in options.split(",") if o.startswith("anchors=")]
    key = ":".join([name, *anchors])
    budget = [o.partition("=")[2] for o in options.split(",") if o.startswith("budget=")]
    return WORDS.get(key, WORDS[name]) + (f", {budget[0]} nodes" if budget else "")


def of(groups, temperature):
    return next(g for g in groups if g["kind"] == "all" and g["temperature"] == temperature)


def table(calibrated, uncalibrated, temperature):
    ours, raw = (of(run["groups"], temperature)["policies"] for run in (calibrated, uncalibrated))
    block = ours["block"]["acceptance_length"]["mean"]
    rows = []
    for policy, figures in ours.items():
        length = figures["acceptance_length"]
        half = (length["high"] - length["low"]) / 2
        without = raw[policy]["acceptance_length"]["mean"]
        rows.append(
            [
                words(policy),
                f"{figures['nodes_per_step']:.1f}",
                f"{length['mean']:.2f} ± {half:.2f}",
                f"{length['mean'] / block:.2f}",
                f"{without:.2f}",
            ]
        )
    columns = ["policy", "nodes a step", "acceptance length", "over block", "without temperatures"]
    return {"columns": columns, "rows": rows}


def honesty_rows(run, label):
    rows = []
    for temperature in sorted({g["temperature"] for g in run["groups"]}):
        found = of(run["groups"], temperature)["honesty"]["dual"]
        for part, name in (
            ("first", "first pass"),
            ("second", "second pass"),
            ("posterior", "boundary posterior r(i)"),
        ):
            if found.get(part):
                error, chance = found[part]["error"], found[part]["chance"]
                shares = [f"{100 * share:.1f} %" for share in (error, chance)]
                rows.append([f"{temperature:g}", name, label, *shares])
    return rows


def main():
    calibrated, uncalibrated = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    tables = {
        "greedy": table(calibrated, uncalibrated, 0.0),
        "sampled": table(calibrated, uncalibrated, 1.0),
        "honesty": {
            "columns": ["temperature", "of", "temperatures", "calibration error", "by chance"],
            "rows": honesty_rows(uncalibrated, "none") + honesty_rows(calibrated, "fitted"),
        },
    }
    raw = {
        name: [
            {**group, "honesty": {"dual": group["honesty"]["dual"]}}
            for group in run["groups"]
            if group["kind"] == "all"
        ]
        for name, run in (("fitted", calibrated), ("none", uncalibrated))
    }
    result = {"tables": tables, "groups": raw, "run": calibrated["run"]}
    (HERE / "claims.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for name, found in tables.items():
        sys.stdout.write(f"\n<!-- table {name} of docs/studies/claims.json -->\n\n")
        for cells in (found["columns"], ["---"] * len(found["columns"]), *found["rows"]):
            sys.stdout.write(f"| {' | '.join(cells)} |\n")


main()
