"""Is plain decoding what transformers' own `generate` says? Prints one JSON object.

python docs/results/identity.py PROMPTS.jsonl [LIMIT] > docs/results/identity.json
"""

import json
import sys

import torch

from d2sd import ModelChoice, Request, open_session
from d2sd.bench.prompts import read_prompts
from d2sd.generate import generate

session = open_session(ModelChoice("smollm2-135m", dtype="float32"), ["none"])
limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
prompts = read_prompts(sys.argv[1], limit)
differing = []
tokens = 0
for prompt in prompts:
    ids = session.chat_prompt([{"role": "user", "content": prompt.turns[0]}])
    request = Request(ids, max_new_tokens=128, stop_tokens=session.stop_tokens)
    ours = generate(session.target, session.drafter("none"), request, session.tokenizer).token_ids
    with torch.inference_mode():
        theirs = session.model.generate(
            torch.tensor([ids]), max_new_tokens=128, do_sample=False, pad_token_id=0
        )[0, len(ids) :]
    tokens += len(ours)
    if list(ours) != theirs.tolist():
        differing.append(prompt.id)
result = {"prompts": len(prompts), "tokens": tokens, "differing": differing}
sys.stdout.write(json.dumps({**result, "run": session.provenance(0)}) + "\n")
