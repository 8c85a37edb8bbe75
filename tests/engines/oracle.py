"""A drafter that knows the answers: trees whose accepted paths leave the trunk, without training.

It stands in for the networks inside vLLM's worker processes, so it reads what it knows from the
file named in D2SD_ORACLE: a JSON list of whole sequences. Every accepted path goes to the file
named in D2SD_ORACLE_LOG. D2SD_ORACLE_BREAK breaks one part on purpose: tokens must change then.
"""

import json
import os
import random
from pathlib import Path

import torch

from d2sd.engines.batches.placement import Placement
from d2sd.engines.vllm import cache_layout
from d2sd.engines.vllm.attention import TreePass
from d2sd.engines.vllm.drafter import TreeDrafter
from d2sd.tree import Branch, TokenTree


class OracleTrees(TreeDrafter):
    """The real drafter with the oracle in front; where it knows nothing, the networks draft."""

    def load_model(self, model):
        super().load_model(model)
        watch()
        broken(os.environ.get("D2SD_ORACLE_BREAK"))
        self.drafter = Oracle(self.drafter, self.settings.budget)


class Oracle:
    def __init__(self, real, budget):
        self.real, self._budget = real, budget
        self._known = json.loads(Path(os.environ["D2SD_ORACLE"]).read_text())
        self.pace, self.predicted = None, {}

    def read(self, new):
        self.real.read(new)

    def forget(self, request):
        self.real.forget(request)

    def wanted(self, requests, prompts_next=False):
        return self.real.wanted(requests, prompts_next)

    def draft(self, asking, most):
        trees = self.real.draft(asking, most)  # also seen to work
        for one in asking:
            rest = self._rest(one)
            if rest and one.deepest > 0 and not one.chain:
                tree = crooked_tree(one.anchor, rest[: min(one.deepest, 8)], one.tokens)
                trees[one.request] = tree.first(self._budget + 1)
        return trees

    def _rest(self, one):
        """What comes after the anchor, if only one known sequence fits so far."""
        fits = [
            known
            for known in self._known
            if len(known) >= one.tokens and known[one.tokens - 1] == one.anchor
        ]
        return fits[0][one.tokens :] if fits else []


def crooked_tree(anchor, truth, seed):
    """The true tokens at the end of a crooked path, wrong siblings before each of them."""
    rng = random.Random(seed)
    branches = []
    for depth in range(len(truth)):
        wrong = [(token + 1 + rng.randrange(3)) % 500 for token in truth[depth:][:2]]
        if rng.random() < 0.7:
            branches.append(Branch((*truth[:depth], *wrong), "wrong"))
        branches.append(Branch(tuple(truth[: depth + 1]), "right"))
    return TokenTree.from_branches(anchor, branches)


def watch():
    """Write down every request's accepted path."""
    compact = TreePass.compact

    def logged(self):
        with Path(os.environ["D2SD_ORACLE_LOG"]).open("a") as file:
            for placed, path in zip(self.placement.trees, self.placement.paths, strict=True):
                file.write(json.dumps([placed.request, path, self.mixed]) + "\n")
        compact(self)

    if "D2SD_ORACLE_LOG" in os.environ:
        TreePass.compact = logged


def broken(part):
    """The two negative controls: accepted rows stay where they are; positions go by rows.

    And a cache that is written in another layout than the one we take it for.
    """
    if part == "compaction":
        TreePass.compact = lambda self: None
    if part == "positions":
        Placement.positions = lambda self: (torch.tensor([], dtype=torch.long),) * 2
    if part == "layout":
        cache_layout.LAYOUTS["vec"] = cache_layout.LAYOUTS["amx"]


class NoTrees:
    """A proposer that is not ours."""

    def __init__(self, vllm_config):
        pass

    def propose(self, *args, **kwargs):
        return []
