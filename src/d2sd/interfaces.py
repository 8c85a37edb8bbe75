"""The two roles of a step, target and drafter, and what passes between them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from d2sd.tree import TokenTree
from d2sd.verify import MATCH, Verdict, Verifier


@dataclass(frozen=True)
class Context:
    """One sequence as it stands before a step.

    `tokens` holds every token so far; the last one is the anchor: emitted, but not yet in the
    target's cache. `features` holds one row of tapped hidden states for each token before it
    (a view into the target's buffer, valid until the target's next prefill).
    """

    tokens: tuple[int, ...]
    features: Float[Tensor, "committed taps hidden"]

    @property
    def anchor(self) -> int:
        return self.tokens[-1]

    @property
    def committed(self) -> int:
        """Number of tokens in the target's cache: all but the anchor."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Scores:
    """What the one target pass of a step says about each node of the tree."""

    tree: TokenTree
    logits: Float[Tensor, "nodes vocab"]
    features: Float[Tensor, "nodes taps hidden"]


class Target(ABC):
    """The model whose output distribution must come out unchanged. Serves one sequence."""

    context_limit: int = sys.maxsize
    """Most tokens a sequence may have."""

    @abstractmethod
    def prefill(self, prompt: Sequence[int]) -> Context:
        """Read all of `prompt` but its last token, which becomes the first anchor.

        Rows of an earlier sequence that share a prefix with `prompt` may be reused. Raises
        ValueError when `prompt` is empty or longer than the model's context.
        """

    @abstractmethod
    def score(self, context: Context, tree: TokenTree) -> Scores:
        """Logits and features at every node, in one forward pass.

        Nodes past the end of the model's context are left out of `Scores.tree`. Raises
        ValueError when even the anchor is past it.
        """

    @abstractmethod
    def commit(self, context: Context, scores: Scores, verdict: Verdict) -> Context:
        """Keep the rows of the accepted path, drop the rest; the bonus is the next anchor."""


class Drafter(ABC):
    """Proposes candidates for the next tokens. Holds the state of one sequence."""

    verify: Verifier = MATCH
    """Chooses the path in its trees. The default is exact for any tree."""

    @abstractmethod
    def draft(self, context: Context) -> TokenTree:
        """A tree rooted at the anchor; a tree of the anchor alone proposes nothing."""


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix: how many cached rows still hold."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(i for i in range(length) if left[i] != right[i])
