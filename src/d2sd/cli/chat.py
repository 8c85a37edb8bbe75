"""`d2sd chat`: a conversation; the target keeps what it has read from turn to turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from d2sd.cli.options import (
    ANSWER,
    ModelOptions,
    PolicyOptions,
    SamplingOptions,
    grouped,
    option,
)


@dataclass(frozen=True)
class ChatOptions:
    """What every answer of the conversation shares."""

    system: Annotated[
        str | None, option("--system", ANSWER, "What the model is told before you speak.", "TEXT")
    ] = None
    max_new_tokens: Annotated[
        int, option("--max-new-tokens", ANSWER, "End an answer after this many tokens.", "N")
    ] = 1024


@grouped
def chat(
    model: ModelOptions,
    drafting: PolicyOptions,
    sampling: SamplingOptions,
    options: ChatOptions,
) -> None:
    """Talk with the model.

    Ctrl-C stops an answer. /clear forgets the conversation, /exit or Ctrl-D ends it.
    """
    from d2sd.cli.opening import chosen_policy, opened, sampling_of
    from d2sd.cli.talking import Conversation, talk

    policy, draws = chosen_policy(drafting), sampling_of(sampling)
    session = opened(model, [policy])
    drafter = session.drafter(policy, draws.temperature)
    talk(Conversation(session, drafter, draws, options.max_new_tokens, options.system))
