"""The walk along the target's own draws, for all trees of a batch, one depth after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from d2sd.tree import TokenTree

Draw = Callable[[list[int], list[list[int]], set[int]], list[int]]
"""(the node at which each request stands, what each emitted, those still walking) -> the draws."""


@dataclass(frozen=True)
class Walked:
    """Per request: the accepted nodes, anchor first, and the tokens emitted, bonus last."""

    paths: list[tuple[int, ...]]
    emitted: list[list[int]]


def walk(trees: Sequence[TokenTree], draw: Draw) -> Walked:
    """`d2sd.verify` on many trees at once: every request draws once for each token it emits."""
    paths = [[0] for _ in trees]
    emitted: list[list[int]] = [[] for _ in trees]
    walking = set(range(len(trees)))
    while walking:
        draws = draw([path[-1] for path in paths], emitted, walking)
        for number in sorted(walking):
            token = draws[number]
            node = trees[number].children.get((paths[number][-1], token))
            emitted[number].append(token)
            if node is None:
                walking.remove(number)
            else:
                paths[number].append(node)
    return Walked([tuple(path) for path in paths], emitted)
