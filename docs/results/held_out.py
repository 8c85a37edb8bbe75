"""The shipped drafters on held-out answers, by teacher forcing. Prints one JSON object.

python docs/results/held_out.py WORK/store RESPONSES.jsonl.gz > docs/results/held-out.json

WORK is the folder that `d2sd train` worked in; the store can be made again by it.
"""

import json
import sys
from collections import Counter

import torch

from d2sd.drafters.checkpoint import load_network
from d2sd.models.resolve import resolve, shipped_drafters
from d2sd.target.load import load_model
from d2sd.train.attention import use_fast_attention
from d2sd.train.calibrate import calibration_error
from d2sd.train.evaluate import Evaluator, leading_matches
from d2sd.train.responses import read_responses, split
from d2sd.train.store import StoredFeatures

store, responses = StoredFeatures(sys.argv[1]), read_responses(sys.argv[2])
model = load_model(resolve("smollm2-135m"), torch.bfloat16)
embedding = model.get_input_embeddings().weight.detach()
networks = []
for folder in shipped_drafters("smollm2-135m"):
    network = load_network(folder)
    network.fc.weight.mul_(store.scale.flatten())  # the store's features are divided by it
    use_fast_attention(network.bfloat16())
    networks.append(network)
first, second = networks
_, held_out = split(responses, 48)
evaluator = Evaluator(store, held_out, embedding, embedding[first.draft_ids])
found = evaluator.acceptance(first, second)
confidence, right = [], []
with torch.inference_mode():
    for sequence in evaluator.sequences:
        chain = evaluator._chain(first, sequence)
        accepted = leading_matches(chain.tokens, chain.batch)
        for slot in range(chain.tokens.shape[1]):
            reached = (accepted >= slot) & chain.batch.learned[0, :, slot + 1]
            confidence.append(chain.confidence[reached, slot])
            right.append(accepted[reached] > slot)
counts = Counter(token for response in responses for token in response.response_ids)
known = sum(counts[token] for token in first.draft_ids.tolist())
every = range(len(responses))
mass = sum(float(store.read([i])[0].soft_probs.float().sum()) for i in every)
result = {
    "answers": len(evaluator.sequences),
    "block": found.block,
    "per_slot": found.per_slot,
    "dual_by_branches": {k: evaluator.acceptance(first, second, k).dual for k in (1, 2, 4, 7)},
    "dual_with_first_in_both_passes": evaluator.acceptance(first, first).dual,
    "block_of_the_second": evaluator.acceptance(second).block,
    "dual_with_second_in_both_passes": evaluator.acceptance(second, second).dual,
    "calibration_error_before_temperatures": calibration_error(
        torch.cat(confidence), torch.cat(right)
    ),
    "draft_vocabulary_covers": known / counts.total(),
    "soft_label_mass": mass / store.index.rows,
}
sys.stdout.write(json.dumps(result, indent=1) + "\n")
