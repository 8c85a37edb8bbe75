"""A drafter together with another verifier than the default."""

from __future__ import annotations

from d2sd.interfaces import Context, Drafter
from d2sd.tree import TokenTree
from d2sd.verify import Verifier


class VerifiedDrafter(Drafter):
    """Drafts what `inner` drafts; `verifier` chooses the path."""

    def __init__(self, inner: Drafter, verifier: Verifier) -> None:
        self.inner = inner
        self.verify = verifier

    def draft(self, context: Context) -> TokenTree:
        return self.inner.draft(context)
