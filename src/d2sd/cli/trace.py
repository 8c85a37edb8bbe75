"""`d2sd trace`: every step's tree in the terminal, the glossary made visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from d2sd.cli.options import (
    ANSWER,
    ModelOptions,
    PolicyOptions,
    SamplingOptions,
    grouped,
    option,
)


@dataclass(frozen=True)
class TraceOptions:
    """How the prompt is read and how far the trace goes."""

    max_new_tokens: Annotated[
        int, option("--max-new-tokens", ANSWER, "End the answer after this many tokens.", "N")
    ] = 48
    raw: Annotated[
        bool, option("--raw", ANSWER, "Continue the prompt as plain text, without chat template.")
    ] = False


@grouped
def trace(
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads standard input.")],
    model: ModelOptions,
    drafting: PolicyOptions,
    sampling: SamplingOptions,
    options: TraceOptions,
) -> None:
    """Show each step's tree: what was drafted by whom, and what the target kept."""
    from d2sd.cli.drawing import Drawing
    from d2sd.cli.opening import chosen_policy, opened, prompt_text, request_for, sampling_of
    from d2sd.cli.options import AnswerOptions
    from d2sd.generate import stream

    policy, draws, text = chosen_policy(drafting), sampling_of(sampling), prompt_text(prompt)
    session = opened(model, [policy])
    answer = AnswerOptions(max_new_tokens=options.max_new_tokens, raw=options.raw)
    request = request_for(session, text, answer, draws)
    drawing = Drawing(session.tokenizer)
    drafter = session.drafter(policy, draws.temperature)
    for piece in stream(session.target, drafter, request, session.tokenizer):
        drawing.show(piece)
    drawing.sum_up()
