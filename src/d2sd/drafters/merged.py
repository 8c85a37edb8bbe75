"""Both passes in one tree under one node budget: past the paper.

Every path has one distribution for its next token: that of the row whose visible tokens cover
the path furthest, the first pass where no second row does. The tree holds the most probable
paths under these distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from d2sd.drafters.best_first import (
    FEW,
    RankedPaths,
    RankedRow,
    Slot,
    fetched_rows,
    linked,
    ranked_paths,
)
from d2sd.drafters.proposer import Proposer
from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree

Anchors = Callable[[RankedRow, int], list[tuple[int, ...]]]
"""(first pass, branches) -> what each second row keeps: distinct, none of them empty."""


class MergedDrafter(Drafter):
    """The `budget` most probable paths of a first pass and of `branches` second rows.

    `anchors` names what second rows keep: "prefix" (the chain up to a likely boundary, as in the
    paper), "alternative" (the chain, then another token than the chain's own) or "mixed"
    (whichever gains most). The budget counts drafted nodes; the anchor comes on top.
    """

    def __init__(
        self,
        first: Proposer,
        second: Proposer,
        budget: int = 64,
        branches: int = 4,
        anchors: str = "mixed",
        block_size: int | None = None,
    ) -> None:
        if anchors not in ANCHORS:
            raise ValueError(f"anchors is {anchors!r}; choose one of {', '.join(ANCHORS)}")
        self._first, self._second = first, second
        self._budget, self._branches = budget, branches
        self._anchors = ANCHORS[anchors]
        self._block_size = block_size or first.block_size

    def draft(self, context: Context) -> TokenTree:
        [first] = self._rows(self._first, context, [()], ["first"])
        kept = self._anchors(first, self._branches)
        sources = [second_source(first, tokens) for tokens in kept]
        second = self._rows(self._second, context, kept, sources) if kept else []
        tree = merged_tree(context.anchor, [first, *second], self._budget)
        return tree.drafted_from(first.chain)

    def _rows(
        self,
        proposer: Proposer,
        context: Context,
        kept: Sequence[tuple[int, ...]],
        sources: Sequence[str],
    ) -> list[RankedRow]:
        visible = [(context.anchor, *tokens) for tokens in kept]
        proposal = proposer.propose(context, visible, self._block_size)
        # alternatives are looked for among the first `branches` runners-up
        return fetched_rows(proposal, kept, sources, max(FEW, self._branches + 1))


def second_source(first: RankedRow, kept: tuple[int, ...]) -> str:
    """`second@2` kept two tokens of the chain; `second@2+1` two and an alternative after them."""
    depth = len(kept) - 1
    if kept[depth] == first.tokens[depth][0]:
        return f"second@{depth + 1}"
    return f"second@{depth}+1"


def merged_tree(anchor: int, rows: Sequence[RankedRow], budget: int) -> TokenTree:
    """The tree of `merged_paths`."""
    return merged_paths(rows, budget).tree(anchor)


def merged_paths(rows: Sequence[RankedRow], budget: int) -> RankedPaths:
    """The `budget` most probable paths under the distributions of `merged_slots`."""
    return ranked_paths(merged_slots(rows), budget)


def merged_slots(rows: Sequence[RankedRow]) -> Slot | None:
    """Where paths begin; `rows[0]` keeps nothing, the others distinct tokens.

    A row counts from its kept tokens on. What they themselves are worth is said by the rows that
    cover less of them, so a row whose kept tokens turn out improbable gets few nodes.
    """
    start = linked(rows[0])
    for row in sorted(rows[1:], key=lambda row: len(row.kept)):
        _graft(start, row)
    return start


def _graft(slot: Slot | None, row: RankedRow) -> None:
    """Let the tokens `row` kept lead to the row's own slots."""
    for token in row.kept[:-1]:
        assert slot is not None
        if token not in slot.redrafted:
            # `rest` is shared by all paths of its length; the path that leads to the row needs
            # a slot of its own.
            rest = slot.rest
            assert rest is not None
            slot.redrafted[token] = Slot(
                rest.tokens, rest.probs, rest.source, rest.rest, {}, rest.more
            )
        slot = slot.redrafted[token]
    opening = linked(row)
    assert slot is not None
    assert opening is not None
    slot.redrafted[row.kept[-1]] = opening


def prefix_anchors(first: RankedRow, branches: int) -> list[tuple[int, ...]]:
    """The chain's prefixes of the most probable boundaries (paper Eq. 5), the empty one left out.

    A row that keeps nothing knows no more than the first pass.
    """
    return _largest(_prefix_gains(first, branches), branches)


def alternative_anchors(first: RankedRow, branches: int) -> list[tuple[int, ...]]:
    """The most probable prefixes of the chain that go on with another token than the chain's."""
    return _largest(_alternative_gains(first, branches), branches)


def mixed_anchors(first: RankedRow, branches: int) -> list[tuple[int, ...]]:
    """Prefixes and alternatives of the largest gain: the probability that the truth passes there.

    For a prefix of i tokens that is the probability that the chain breaks just after it; for an
    alternative the probability of its path. The alternatives after a prefix share its gain among
    them, so a prefix wins where the break is sure and the token that replaces it is not.
    """
    return _largest(_mixed_gains(first, branches), branches)


ANCHORS: dict[str, Anchors] = {
    "prefix": prefix_anchors,
    "alternative": alternative_anchors,
    "mixed": mixed_anchors,
}

Gain = tuple[float, tuple[int, ...]]
"""What a second row gains, as a probability, and what it keeps."""


def weighed_anchors(anchors: str, first: RankedRow, branches: int) -> list[Gain]:
    """The anchors of the kind `anchors` with their gains, largest first."""
    return _sorted(_GAINS[anchors](first, branches))[:branches]


def _largest(gains: Iterable[Gain], branches: int) -> list[tuple[int, ...]]:
    return [kept for _, kept in _sorted(gains)[:branches]]


def _sorted(gains: Iterable[Gain]) -> list[Gain]:
    """Stable: of equal gains the earlier, so the shallower, comes first."""
    return sorted(gains, key=lambda gain: -gain[0])


def _chain(first: RankedRow) -> Iterator[tuple[int, float, tuple[int, ...]]]:
    """Every slot, the probability that the greedy chain is right up to it, and that chain."""
    reach, chain = 1.0, tuple[int, ...]()
    for slot in range(len(first.tokens)):
        yield slot, reach, chain
        reach *= first.probs[slot][0]
        chain = (*chain, first.tokens[slot][0])


def _prefix_gains(first: RankedRow, branches: int) -> Iterator[Gain]:
    for slot, reach, chain in _chain(first):
        if slot > 0:
            yield reach * (1 - first.probs[slot][0]), chain


def _alternative_gains(first: RankedRow, branches: int) -> Iterator[Gain]:
    for slot, reach, chain in _chain(first):
        if slot < len(first.tokens) - 1:  # nothing can be redrafted after the last slot
            others = zip(first.tokens[slot], first.probs[slot], strict=True)
            for token, chance in list(others)[1 : branches + 1]:
                yield reach * chance, (*chain, token)


def _mixed_gains(first: RankedRow, branches: int) -> Iterator[Gain]:
    yield from _prefix_gains(first, branches)
    yield from _alternative_gains(first, branches)


_GAINS = {"prefix": _prefix_gains, "alternative": _alternative_gains, "mixed": _mixed_gains}
