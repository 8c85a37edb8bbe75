"""START HERE: the loop. One step is four verbs: draft, score, verify, commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d2sd.interfaces import Drafter, Target
from d2sd.sampling import Sampling
from d2sd.stages import Stage, untimed
from d2sd.tree import TokenTree
from d2sd.verify import Verdict


@dataclass(frozen=True)
class Step:
    """One target pass: what was drafted and what was kept."""

    tree: TokenTree
    verdict: Verdict

    @property
    def emitted(self) -> tuple[int, ...]:
        """The step's tokens: the accepted ones, then the bonus."""
        return (*self.tree.tokens_on(self.verdict.path), self.verdict.bonus)

    @property
    def drafted(self) -> int:
        """Nodes the target scored beyond the anchor."""
        return len(self.tree) - 1


def decode(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    sampling: Sampling,
    stage: Stage = untimed,
) -> Iterator[Step]:
    """Yield one Step per target pass, for as long as the caller asks.

    Stop rules, text, streaming and statistics consume steps; none of them is in here.
    """
    with stage("prefill"):
        context = target.prefill(prompt)
    while True:
        with stage("draft"):
            tree = drafter.draft(context)
        with stage("score"):
            scores = target.score(context, tree)
        with stage("verify"):
            verdict = drafter.verify(scores.tree, scores.logits, sampling, context.tokens)
        with stage("commit"):
            context = target.commit(context, scores, verdict)
        yield Step(scores.tree, verdict)
