"""Which of the tree's candidates are kept: the walk along the target's own draws."""

from __future__ import annotations

from collections.abc import Sequence
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
    """
    path = [0]
    seen = list(history)
    while True:
        token = sampling.draw(logits[path[-1]], seen)
        node = tree.children.get((path[-1], token))
        if node is None:
            return Verdict(tuple(path), bonus=token)
        path.append(node)
        seen.append(token)
