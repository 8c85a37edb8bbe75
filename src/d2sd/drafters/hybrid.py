"""Likely tokens chosen, one of the others drawn: a tree between best-first and drawn ones."""

from __future__ import annotations

from d2sd.drafters.best_first import RankedPaths, RankedRow, linked, ranked_paths
from d2sd.drafters.laws import CANDIDATES, SlotLaws, distinct_draws, own_generator
from d2sd.drafters.proposer import Proposer
from d2sd.draws import Kind
from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree, TreeBuilder

TO_DRAW = -1
"""Stands for a token that will be drawn when the shape is known."""


class HybridDrafter(Drafter):
    """The `budget` most probable paths through tokens of at least `percent` and drawn others.

    Below every node, tokens with that probability are chosen; what is left of the law gives one
    drawn token, counted by its mass. The shape is best-first and known before anything is drawn.
    """

    def __init__(
        self,
        proposer: Proposer,
        budget: int = 24,
        percent: int = 15,
        seed: int = 0,
        block_size: int | None = None,
    ) -> None:
        self._proposer = proposer
        self._budget, self._threshold = budget, percent / 100
        self._rng = own_generator(seed)
        self._block_size = block_size or proposer.block_size

    def draft(self, context: Context) -> TokenTree:
        laws = SlotLaws.of_pass(self._proposer, context, self._block_size, CANDIDATES)
        row = hybrid_row(laws, self._threshold)
        return self._grown(context.anchor, ranked_paths(linked(row), self._budget), laws)

    def _grown(self, anchor: int, paths: RankedPaths, laws: SlotLaws) -> TokenTree:
        """The paths' tree with its open tokens drawn, each from what was not chosen beside it."""
        shape = paths.tree(anchor)
        open_nodes = [node for node in range(1, len(shape)) if shape.tokens[node] == TO_DRAW]
        slots = [shape.depths[node] - 1 for node in open_nodes]
        probs = laws.probs[slots]
        for race, node in enumerate(open_nodes):
            for beside in shape.below[shape.parents[node]]:
                probs[race, laws.tokens[slots[race]] == shape.tokens[beside]] = 0
        picks = distinct_draws(probs, 1, self._rng) if open_nodes else []
        tokens = {
            node: int(laws.tokens[slot, pick[0]])
            for node, slot, pick in zip(open_nodes, slots, picks, strict=True)
        }
        builder = TreeBuilder(anchor)
        for node in range(1, len(shape)):
            builder.add(
                shape.parents[node],
                tokens.get(node, shape.tokens[node]),
                "sample" if node in tokens else "first",
            )
        return laws.drawn(builder.tree(), Kind.HYBRID, open_nodes)


def hybrid_row(laws: SlotLaws, threshold: float) -> RankedRow:
    """Per slot the tokens of at least `threshold` and one open entry for all others, best first."""
    tokens, probs = [], []
    for row, chances in zip(laws.tokens.tolist(), laws.probs.tolist(), strict=True):
        count = sum(chance >= threshold for chance in chances)
        rest = sum(chances[count:], 0.0)
        entries = [*zip(chances[:count], row[:count], strict=True), (rest, TO_DRAW)]
        entries.sort(key=lambda entry: -entry[0])
        tokens.append([token for _, token in entries])
        probs.append([chance for chance, _ in entries])
    return RankedRow((), tokens, probs, "first")
