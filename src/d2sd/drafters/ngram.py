"""Continues the longest suffix seen before in prompt and output; needs no weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from d2sd.interfaces import Context, Drafter, shared_prefix
from d2sd.tree import Branch, TokenTree


class NgramDrafter(Drafter):
    """A chain of `length` tokens, copied from after the latest earlier occurrence of the suffix.

    Suffixes of `max_order` tokens are tried first, then shorter ones down to `min_order`; none
    found, nothing is drafted.
    """

    def __init__(self, length: int = 8, max_order: int = 4, min_order: int = 1) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; an n-gram chain needs at least 1 token")
        self._length = length
        self._ngrams = Ngrams(max_order, min_order)

    def draft(self, context: Context) -> TokenTree:
        copy = self._ngrams.copy(context.tokens, self._length)
        return TokenTree.from_branches(context.anchor, [Branch(copy.tokens, "ngram")])


@dataclass(frozen=True)
class Copy:
    """Tokens that followed an earlier occurrence of the suffix, and how long both match."""

    tokens: tuple[int, ...] = ()
    matched: int = 0


class Ngrams:
    """Where every n-gram of a sequence was last seen.

    A copy may run into the tokens it is itself adding, so a repeated phrase is continued for as
    long as asked. An index of every n-gram seen makes a step cost as much as it has new tokens; a
    changed sequence takes back only what no longer holds.
    """

    def __init__(self, max_order: int = 4, min_order: int = 1) -> None:
        if not 1 <= min_order <= max_order:
            raise ValueError(
                f"min_order is {min_order} and max_order {max_order}; "
                "n-gram orders need 1 <= min_order <= max_order"
            )
        self._orders = range(max_order, min_order - 1, -1)
        self._tokens: tuple[int, ...] = ()
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def copy(self, tokens: tuple[int, ...], length: int, longest: int = 0) -> Copy:
        """`length` tokens after the latest occurrence of the longest known suffix.

        A match of `max_order` tokens is followed back further, up to `longest` tokens.
        """
        self._read(tokens)
        for ngram in self._ngrams_before(len(tokens), tokens):
            if places := self._places.get(ngram):
                matched = len(ngram)
                if matched == self._orders[0]:
                    matched = _matched(tokens, places[-1], matched, longest)
                return Copy(_cycled(tokens, places[-1], length), matched)
        return Copy()

    def _read(self, tokens: tuple[int, ...]) -> None:
        """Index the n-grams that end before each new token; forget those of dropped tokens."""
        kept = shared_prefix(self._tokens, tokens)
        for place in range(len(self._tokens) - 1, kept - 1, -1):
            for ngram in self._ngrams_before(place, self._tokens):
                places = self._places[ngram]
                places.pop()
                if not places:
                    del self._places[ngram]
        for place in range(kept, len(tokens)):
            for ngram in self._ngrams_before(place, tokens):
                self._places[ngram].append(place)
        self._tokens = tokens

    def _ngrams_before(self, place: int, tokens: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The n-grams whose continuation starts at `place`, longest first."""
        return (tokens[place - order : place] for order in self._orders if order <= place)


def _matched(tokens: tuple[int, ...], place: int, matched: int, longest: int) -> int:
    """How many tokens before `place` equal the last ones, `matched` of which are known to."""
    while matched < min(longest, place) and tokens[place - matched - 1] == tokens[-matched - 1]:
        matched += 1
    return matched


def _cycled(tokens: tuple[int, ...], start: int, length: int) -> tuple[int, ...]:
    """`length` tokens from `start` on, read cyclically where the sequence ends."""
    period = len(tokens) - start
    return tuple(tokens[start + step % period] for step in range(length))
