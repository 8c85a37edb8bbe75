"""Verifiers that weigh the target's probabilities against those that a tree was drawn with.

Both rules read a node's children in the order they were drawn, each with the law of its draw given
those before it. A child that was not drawn has a law that is certain of it; that is the whole
difference between drawn trees and others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from d2sd.draws import Kind, Law
from d2sd.sampling import Sampling
from d2sd.tree import TokenTree
from d2sd.verify.match import Verdict


def verify_by_rounds(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """From the anchor down: children are tried in turn, each against what the others left.

    On a chain it is Leviathan's and Chen's rule (arXiv 2211.17192, Alg. 1); on independent draws
    SpecInfer's (2305.09781, Alg. 2); on draws without replacement Sequoia's (2402.12374, Alg. 2).
    One node a depth is visited, so nodes of a depth may share their draws.
    """
    path, seen = [0], list(history)
    while True:
        wanted = sampling.probs(logits[path[-1]], seen)
        for child, law in draws_below(tree, path[-1]):
            token = tree.tokens[child]
            if sampling.coin(float(wanted[token]) / law.of(token)):
                path.append(child)
                seen.append(token)
                break
            wanted, _ = left_over(wanted, 1.0, law)
        else:
            return Verdict(tuple(path), sampling.pick(wanted))


def verify_by_traversal(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """From the leaves up: the first leaf that its path's weight accepts (2505.12398, Alg. 2).

    A path's weight is min(1, weight of its parent × target / draft). A leaf that is rejected
    leaves its parent another law and another weight; without children left the parent is a leaf.
    On a chain this is block verification (2403.10444, Alg. 2). Subtrees are conditioned on the
    rejection of earlier ones, so no two parents may share draws.
    """
    verdict = _Traversal(tree, logits, sampling).visit((0,), 1.0, list(history))
    assert verdict is not None  # the anchor's weight stays 1
    return verdict


@dataclass(frozen=True)
class _Traversal:
    """A tree and what its target says, on the way from leaf to leaf."""

    tree: TokenTree
    logits: Float[Tensor, "nodes vocab"]
    sampling: Sampling

    def visit(self, path: tuple[int, ...], weight: float, seen: list[int]) -> Verdict | None:
        """The verdict, if a leaf at or below the end is accepted, which has the chance `weight`."""
        tree, sampling, node = self.tree, self.sampling, path[-1]
        leaf = not tree.below[node]
        if leaf and not sampling.coin(weight):
            return None
        wanted = sampling.probs(self.logits[node], seen)
        for child, law in draws_below(tree, node, repeats=False):
            token = tree.tokens[child]
            chance = min(1.0, weight * float(wanted[token]) / law.of(token))
            verdict = self.visit((*path, child), chance, [*seen, token]) if chance else None
            if verdict is not None:
                return verdict
            wanted, weight = left_over(wanted, weight, law)
        return Verdict(path, sampling.pick(wanted)) if leaf or sampling.coin(weight) else None


def draws_below(tree: TokenTree, node: int, repeats: bool = True) -> Iterator[tuple[int, Law]]:
    """A node's children as they were drawn, each with the law of its draw given those before.

    Chosen children come first. Without `repeats`, independent draws count at their first
    appearance only, which makes them draws without replacement.
    """
    drawn = [child for child in tree.draws.drawn if tree.parents[child] == node]
    chosen = [child for child in tree.below[node] if child not in drawn]
    for child in chosen:
        yield child, Law.certain(tree.tokens[child])
    if not drawn:
        return
    law = tree.draws.law(node)
    for child in chosen:
        law = law.without(tree.tokens[child])
    renewed = repeats and tree.draws.kind is Kind.INDEPENDENT
    for child in drawn if renewed else dict.fromkeys(drawn):
        yield child, law
        if not renewed:
            law = law.without(tree.tokens[child])


def left_over(
    wanted: Float[Tensor, " vocab"], weight: float, law: Law
) -> tuple[Float[Tensor, " vocab"], float]:
    """What is still wanted after a draw from `law` was rejected, and with which weight.

    With w the weight, p what was wanted and q the law: [w p - q]+ over its sum s, and
    s / (s + (1 - w)), the probability of acceptance given the rejection.
    """
    rest = weight * wanted
    rest[law.tokens] -= law.probs
    rest.clamp_(min=0)
    mass = float(rest.sum())
    if mass == 0:  # nothing is left: with weight 1 the draw could not have been rejected
        return wanted, float(weight == 1)
    return rest / mass, mass / (mass + (1 - weight))
