"""Verifiers that accept what the target finds good enough. They change what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from d2sd.sampling import Sampling
from d2sd.tree import TokenTree
from d2sd.verify.match import Verdict

MOST, SHARE = 0.09, 0.3
"""Medusa's, as its decoding sets them."""

BEST, DISTANCE = 3, 1.0

GoodEnough = Callable[[Float[Tensor, " vocab"]], Bool[Tensor, " vocab"]]
"""The target's law at a node -> which tokens pass after it."""


def verify_typical(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """The longest path of typical tokens (Medusa, arXiv 2401.10774); exact in greedy decoding."""
    return _longest(tree, logits, (sampling, sampling), history, typical)


def verify_near_the_best(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """The longest path of tokens near the target's favourites (SpecDec, arXiv 2203.16487).

    In greedy decoding the target's law at temperature 1 says what is near.
    """
    laws = replace(sampling, temperature=sampling.temperature or 1.0)
    return _longest(tree, logits, (laws, sampling), history, near_the_best)


def typical(law: Float[Tensor, " vocab"]) -> Bool[Tensor, " vocab"]:
    """Tokens above min(MOST, SHARE · e^-entropy): rarer ones pass where the target is unsure."""
    entropy = float(torch.special.entr(law).sum())
    return law > min(MOST, SHARE * math.exp(-entropy))


def near_the_best(
    law: Float[Tensor, " vocab"], best: int = BEST, distance: float = DISTANCE
) -> Bool[Tensor, " vocab"]:
    """Tokens among the `best` first whose log-probability is at most `distance` below the top.

    With `best` 1 or `distance` 0 only favourites pass.
    """
    top = law.topk(min(best, len(law))).indices
    close = law.log() >= law.max().log() - distance
    return torch.zeros_like(close).index_fill_(0, top, True) & close


def _longest(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    samplings: tuple[Sampling, Sampling],
    history: Sequence[int],
    good_enough: GoodEnough,
) -> Verdict:
    """The longest path whose tokens all pass, of equals the more probable; then a target's draw.

    The first of `samplings` gives the laws that tokens pass by, the second the draw.
    """
    laws, draws = samplings
    reached = {0: (0, 0.0)}
    for node in range(len(tree)):
        if node in reached and tree.below[node]:
            depth, chance = reached[node]
            law = laws.probs(logits[node], [*history, *tree.tokens_on(tree.path_to(node))])
            passing = good_enough(law)
            for child in tree.below[node]:
                token = tree.tokens[child]
                if passing[token]:
                    reached[child] = depth + 1, chance + math.log(law[token])
    path = tree.path_to(max(reached, key=reached.__getitem__))
    return Verdict(path, draws.draw(logits[path[-1]], [*history, *tree.tokens_on(path)]))
