r"""A table for docs/methods.md: every method, what it needs, and what the study `related` measures.

d2sd bench --study related --suite-dir ../shared/data/eval --dtype bfloat16 --limit 5 \
  --max-new-tokens 40 --out docs/results/related
python docs/results/methods.py docs/results/related/results.json > docs/results/methods.json
"""

import json
import sys
from pathlib import Path

results = json.loads(Path(sys.argv[1]).read_text())
FIRST, HEAD, MASKED = "first drafter", "head", "masked-diffusion LM"
METHODS = {  # contender -> method, what is exact, what is trained, draft passes a step
    "none": ("plain decoding", "itself", "nothing", "0"),
    "block": ("DFlash", "match", FIRST, "1"),
    "best-first": ("DDTree", "match", FIRST, "1"),
    "dual": ("D²SD", "match", "both drafters", "2"),
    "merged": ("ours, past D²SD", "match", "both drafters", "2"),
    "eagle": ("EAGLE-3, a chain", "match", HEAD, "7"),
    "eagle-tree": ("EAGLE-3 with EAGLE-2's tree", "match", HEAD, "5"),
    "specdiff": ("SpecDiff, one denoising step", "match", MASKED, "1"),
    "self-selection": ("SpecDiff-2's self-selection", "selected", FIRST, "1"),
    "self-selection:verifier=match": ("the tree of its drafts", "match", FIRST, "1"),
    "diffuspec": ("DiffuSpec", "match", FIRST, "1"),
    "drawn:verifier=token": ("Leviathan's rule", "token", FIRST, "1"),
    "drawn:verifier=block": ("block verification", "block", FIRST, "1"),
    "drawn-tree": ("traversal verification", "traversal", FIRST, "1"),
}


def described(contender: str) -> tuple[str, str, str, str]:
    return METHODS.get(contender) or METHODS[contender.partition(":")[0]]


def cells(contender: str) -> list[str]:
    rows = [means["rows"][contender] for means in results["means"]]
    found = []
    for row in rows:
        found += [f"{row['nodes_per_step']:.1f}", f"{row['acceptance_length'][0]:.2f}"]
        found += [f"{row['tokens_per_second']:.1f}", f"{row['speedup'][0]:.2f}"]
    return found


temperatures = [means["temperature"] for means in results["means"]]
columns = ["method", "policy", "exact by", "trained", "passes"]
for temperature in temperatures:
    columns += [f"{name}, T = {temperature:g}" for name in ("nodes", "accepted", "tokens/s", "×")]
names = [
    one["name"] for one in results["participants"] if one["name"] in results["means"][0]["rows"]
]
rows = []
for name in names:
    method, rule, trained, passes = described(name)
    rows.append(
        [method, name.replace(":verifier", ", verifier"), rule, trained, passes, *cells(name)]
    )

tables = {
    "methods": {"columns": columns, "rows": rows},
}
facts = {"made of": sys.argv[1], "run": results["run"], "tables": tables}
sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
