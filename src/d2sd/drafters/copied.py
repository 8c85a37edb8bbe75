"""A copied chain among the candidates of the drafters' passes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from d2sd.drafters.best_first import RankedPaths, Slot
from d2sd.drafters.hits import HitRates
from d2sd.drafters.ngram import Copy

UNLIKELY = 0.01
"""A copy is followed for as long as it is more probable than this."""


@dataclass(frozen=True)
class Spliced:
    """Slots that hold a copy, and the passes' probability of each copied token, where they say."""

    start: Slot | None
    opinions: tuple[float | None, ...]


def spliced(start: Slot | None, copy: Copy, hits: HitRates) -> Spliced:
    """The slots from `start` on, with every copied token as probable as hits of its kind were.

    Only the copy's own path changes: what a token gains there, the others of its slot lose in
    proportion, and the other way round. `start` itself is left as it is.
    """
    opinions: list[float | None] = []
    made: list[Slot] = []
    slot, reach = start, 1.0
    for depth, token in enumerate(copy.tokens):
        opinion = _opinion(slot, token)
        chance = hits.chance(copy.matched + depth, opinion)
        if slot is None:
            made.append(Slot([token], [chance], "ngram", None))
        else:
            made.append(_changed(slot, token, opinion or 0.0, chance))
            slot = slot.redrafted.get(token, slot.rest)
        opinions.append(opinion)
        reach *= chance
        if reach < UNLIKELY:
            break
    if slot is not None:
        made.append(slot)
    for token, before, after in zip(copy.tokens, made, made[1:], strict=False):
        before.redrafted[token] = after
    return Spliced(made[0] if made else None, tuple(opinions))


def _opinion(slot: Slot | None, token: int) -> float | None:
    if slot is None:
        return None
    return slot.probs[slot.tokens.index(token)] if token in slot.tokens else 0.0


def _changed(slot: Slot, token: int, before: float, after: float) -> Slot:
    """`slot` with `token` of the probability `after` in place of `before`."""
    left = (1 - after) / (1 - before) if before < 1 else 0.0
    others = [
        (other, left * prob)
        for other, prob in zip(slot.tokens, slot.probs, strict=True)
        if other != token
    ]
    place = sum(prob >= after for _, prob in others)
    others.insert(place, (token, after))
    return replace(
        slot,
        tokens=[other for other, _ in others],
        probs=[prob for _, prob in others],
        redrafted=dict(slot.redrafted),
    )


def named(paths: RankedPaths, copy: Copy, start: Slot | None) -> RankedPaths:
    """`paths` with the source `ngram` at copied tokens that no pass from `start` on proposed."""
    sources = list(paths.sources)
    slot, node, depth = start, 0, 0
    for place, (token, parent) in enumerate(zip(paths.tokens, paths.parents, strict=True)):
        if depth < len(copy.tokens) and parent == node and token == copy.tokens[depth]:
            if slot is None or token not in slot.tokens:
                sources[place] = "ngram"
            slot = slot.redrafted.get(token, slot.rest) if slot else None
            node, depth = place + 1, depth + 1
    return replace(paths, sources=tuple(sources))
