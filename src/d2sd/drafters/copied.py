"""A copied chain among the candidates of the drafters' passes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from d2sd.drafters.best_first import RankedPaths, Slot
from d2sd.drafters.ngram import Copy
from d2sd.drafters.planner import HitRates, Opinion

UNLIKELY = 0.01
"""A copy is followed for as long as it is more probable than this."""


@dataclass(frozen=True)
class Spliced:
    """Slots that hold a copy, and what the passes said of each copied token."""

    start: Slot | None
    opinions: tuple[Opinion, ...]


def spliced(start: Slot | None, copy: Copy, hits: HitRates) -> Spliced:
    """The slots from `start` on, with every copied token at least as probable as its hit rate.

    Only the copy's own path changes: what a token gains there, the others of its slot lose in
    proportion. `start` itself is left as it is.
    """
    opinions: list[Opinion] = []
    made: list[Slot] = []
    slot, reach = start, 1.0
    for depth, token in enumerate(copy.tokens):
        opinion = _opinion(slot, token)
        chance = hits.rate(copy.matched + depth, opinion)
        if slot is None:
            made.append(Slot([token], [chance], "ngram", None))
        else:
            made.append(_raised(slot, token, chance))
            chance = made[-1].probs[made[-1].tokens.index(token)]
            slot = slot.redrafted.get(token, slot.rest)
        opinions.append(opinion)
        reach *= chance
        if reach < UNLIKELY:
            break
    if not made:
        return Spliced(start, ())
    if slot is not None:
        made.append(slot)
    for token, before, after in zip(copy.tokens, made, made[1:], strict=False):
        before.redrafted[token] = after
    return Spliced(made[0], tuple(opinions))


def _opinion(slot: Slot | None, token: int) -> Opinion:
    if slot is None:
        return Opinion.NONE
    return Opinion.SAME if slot.tokens[0] == token else Opinion.OTHER


def _raised(slot: Slot, token: int, chance: float) -> Slot:
    """`slot` with `token` at least as probable as `chance`."""
    pairs = dict(zip(slot.tokens, slot.probs, strict=True))
    own = pairs.pop(token, 0.0)
    raised = max(own, chance)
    left = (1 - raised) / (1 - own) if own < 1 else 0.0
    place = sum(left * prob >= raised for prob in pairs.values())
    tokens, probs = list(pairs), [left * prob for prob in pairs.values()]
    tokens.insert(place, token)
    probs.insert(place, raised)
    return replace(slot, tokens=tokens, probs=probs, redrafted=dict(slot.redrafted))


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
