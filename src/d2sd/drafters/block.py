"""One diffusion pass, one chain (DFlash)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from d2sd.drafters.boundary import expected_boundary
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import Branch, Chain, TokenTree


class BlockDrafter(Drafter):
    """The most probable token of every slot of one block: a chain of `block_size - 1` nodes."""

    def __init__(self, proposer: Proposer, block_size: int | None = None) -> None:
        self._proposer = proposer
        self._block_size = block_size or proposer.block_size

    def draft(self, context: Context) -> TokenTree:
        [row] = fill(self._proposer, context, [()], self._block_size)
        tree = TokenTree.from_branches(context.anchor, [Branch(row.tokens, "first")])
        return tree.drafted_from(row.chain)


@dataclass(frozen=True)
class FilledRow:
    """A row of a pass filled greedily: the tokens it kept, those it chose, how sure it is."""

    kept: tuple[int, ...]
    rest: tuple[int, ...]
    confidence: Float[Tensor, " rest"]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens after the anchor."""
        return self.kept + self.rest

    @property
    def chain(self) -> Chain:
        """The tokens it chose, and where they will most likely break."""
        return Chain(self.rest, expected_boundary(self.confidence.tolist()))


def fill(
    proposer: Proposer, context: Context, kept: Sequence[tuple[int, ...]], block_size: int
) -> list[FilledRow]:
    """One pass over rows that show the anchor and `kept[r]`; every other slot filled greedily."""
    if not kept:
        return []
    visible = [(context.anchor, *tokens) for tokens in kept]
    chosen = proposer.propose(context, visible, block_size).greedy()
    tokens, confidence = chosen.tokens[..., 0].tolist(), chosen.probs[..., 0].cpu()
    return [
        FilledRow(shown, tuple(row[len(shown) :]), sure[len(shown) :])
        for shown, row, sure in zip(kept, tokens, confidence, strict=True)
    ]
