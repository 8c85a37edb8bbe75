"""The greedy or the sampled ones of some answers, equally many of both.

python docs/studies/part.py RESPONSES.jsonl greedy|sampled OUT.jsonl
"""

import json
import sys
from pathlib import Path

source, kind, out = sys.argv[1:]
with Path(source).open() as file:  # splitlines() would also cut at U+2028 inside an answer
    lines = list(file)
greedy = [line for line in lines if json.loads(line)["temperature"] == 0]
sampled = [line for line in lines if json.loads(line)["temperature"] > 0]
count = min(len(greedy), len(sampled))
chosen = {"greedy": greedy, "sampled": sampled}[kind][:count]
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text("".join(chosen))
