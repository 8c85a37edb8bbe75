"""vLLM's servers under rising load, from what `d2sd bench --backend openai` wrote.

sh docs/results/vllm_servers.sh TARGET SERVED     # in another terminal
sh docs/results/vllm_sweep.sh FOLDER ../shared/data/eval
python docs/results/vllm_sweep.py FOLDER/*/sweep.json > docs/results/vllm-sweep.json
"""

import json
import sys
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, median, stdev

sweeps = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
runs = [run | {"round": n} for n, sweep in enumerate(sweeps, 1) for run in sweep["runs"]]
servers = [word.partition("=")[0] for word in sweeps[0]["run"]["command"] if "=http" in word]
first, again, ours = "plain", "plain-again", "d2sd"
by_load = {}
for run in runs:
    by_load.setdefault(run["clients"], {}).setdefault(run["server"], []).append(run)


def speed(found: list) -> float:
    return median(run["tokens_per_second"] for run in found)


def to_first(load: dict, server: str) -> list[float]:
    """Over the first server, in the same round."""
    its = {run["round"]: run["tokens_per_second"] for run in load[first]}
    return [run["tokens_per_second"] / its[run["round"]] for run in load[server]]


def cell(load: dict, server: str) -> str:
    ratio = f" ({median(to_first(load, server)):.2f} ×)"
    return f"{speed(load[server]):.1f}" + ratio * (server != first)


def rounds(load: dict) -> list[str]:
    found = [to_first(load, server) for server in (ours, again)]
    return [cell for all_ in found for cell in (", ".join(map("{:.2f}".format, all_)), mean(all_))]


def mean(ratios: list[float]) -> str:
    """The geometric one, and two standard errors of it."""
    logs = list(map(log, ratios))
    return f"{exp(fmean(logs)):.3f} ± {2 * stdev(logs) / sqrt(len(logs)):.3f}"


def slower(server: str) -> list[str]:
    """Over all loads that were repeated."""
    ratios = [ratio for _, load in repeated for ratio in to_first(load, server)]
    return [f"slower in {sum(r < 1 for r in ratios)} of {len(ratios)}", mean(ratios)]


def same(server: str) -> str:
    found = [run for load in by_load.values() for run in load[server]]
    return f"{sum(r['same_texts'] for r in found)} of {sum(r['answers'] for r in found)}"


loads = sorted(by_load.items())
repeated = [(n, load) for n, load in loads if len(load[first]) > 1]
tables = {
    "sweep": {
        "columns": ["requests at once", *servers],
        "rows": [[str(n), *(cell(load, name) for name in servers)] for n, load in loads],
    },
    "rounds": {
        "columns": [
            "requests at once",
            f"{ours} over {first}, round by round",
            "mean",
            f"{again} over {first}, round by round",
            "mean",
        ],
        "rows": [
            *([str(n), *rounds(load)] for n, load in repeated),
            ["all", *slower(ours), *slower(again)],
        ],
    },
    "same": {
        "columns": ["server", f"answers with the text of {first}"],
        "rows": [[name, same(name)] for name in servers[1:]],
    },
}
asked = [sweep["load"] | {"prompts": len(sweep["load"]["prompts"])} for sweep in sweeps]
facts = {"runs": runs, "loads": asked, "made": [s["run"] for s in sweeps], "tables": tables}
sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
