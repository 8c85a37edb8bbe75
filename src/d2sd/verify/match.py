"""Which of the tree's candidates are kept: the walk along the target's own draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from d2sd.sampling import Sampling
from d2sd.tree import TokenTree


@dataclass(frozen=True)
class Verdict:
    """The accepted path (node 0, the anchor, first) and the target's own draw after it."""

    path: tuple[int, ...]
    bonus: int


def verify(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """Draw from the target at each visited node and follow the tree while a child matches.

    Only target draws are emitted and the tree is fixed before they are made, so the output law
    is the target's for any tree, any temperature, any logits processor (the walk of D²SD's
    stage 4, generalised from rows to a tree). `history` is every token so far, anchor last.

    On an accelerator the host waits once a step: all nodes' draws come in one transfer. With
    logits processors it waits once per visited node, because the history decides what they do.
    On the CPU there is nothing to wait for, and only the visited rows are read.
    """
    if logits.device.type == "cpu" or sampling.processors:
        return verify_row_by_row(tree, logits, sampling, history)
    return verify_at_once(tree, logits, sampling, history)


def verify_row_by_row(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """`verify` with a draw where the walk comes by: as many transfers as tokens are emitted."""
    seen = list(history)

    def draw(node: int) -> int:
        token = sampling.draw(logits[node], seen)
        seen.append(token)
        return token

    return _walk(tree, draw)


def verify_at_once(
    tree: TokenTree,
    logits: Float[Tensor, "nodes vocab"],
    sampling: Sampling,
    history: Sequence[int],
) -> Verdict:
    """`verify` with the draws of all nodes made first: one transfer, for any tree.

    A draw that is not visited counts for nothing: its noise waits for the token of its position.
    """
    draws = sampling.draw_all(logits, tree.depths).tolist()
    verdict = _walk(tree, draws.__getitem__)
    sampling.noise.emitted(len(verdict.path))
    return verdict


def _walk(tree: TokenTree, draw: Callable[[int], int]) -> Verdict:
    """Follow the draws from the anchor; the first that no child has is the bonus."""
    path = [0]
    while True:
        token = draw(path[-1])
        node = tree.children.get((path[-1], token))
        if node is None:
            return Verdict(tuple(path), bonus=token)
        path.append(node)
