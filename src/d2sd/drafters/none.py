"""No drafting at all: plain autoregressive decoding through the same loop."""

from __future__ import annotations

from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree


class NoDrafter(Drafter):
    """The anchor alone: the baseline of every figure."""

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.from_branches(context.anchor, ())
