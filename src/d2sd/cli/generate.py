"""`d2sd generate`: one prompt, one answer, what was gained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from d2sd.cli.options import (
    OUTPUT,
    AnswerOptions,
    Json,
    ModelOptions,
    PolicyOptions,
    SamplingOptions,
    grouped,
    option,
)


@dataclass(frozen=True)
class ShowOptions:
    """What is shown besides the answer."""

    compare: Annotated[
        bool, option("--compare", OUTPUT, "Answer once more without drafting and compare both.")
    ] = False
    stages: Annotated[
        bool, option("--stages", OUTPUT, "Show which part of a step takes how long.")
    ] = False
    as_json: Json = False


@grouped
def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads standard input.")],
    model: ModelOptions,
    drafting: PolicyOptions,
    sampling: SamplingOptions,
    answer: AnswerOptions,
    show: ShowOptions,
) -> None:
    """Answer one prompt, and show what drafting gained.

    The text is what the model says without drafting as well; only the time differs.
    """
    from d2sd.cli import answering
    from d2sd.cli.opening import chosen_policy, opened, prompt_text, request_for, sampling_of
    from d2sd.cli.tables import print_split
    from d2sd.cli.terminal import print_json, say

    policy, draws, text = chosen_policy(drafting), sampling_of(sampling), prompt_text(prompt)
    session = opened(model, [policy])
    request = request_for(session, text, answer, draws)
    if show.compare:
        answering.warm_up(session, policy, request)
        answering.warm_up(session, "none", request)
    on_text = (lambda text: None) if show.as_json else say
    ours = answering.answer(session, policy, request, on_text)
    gained = answering.gain(session, request, ours.generation) if show.compare else None
    if show.as_json:
        print_json(answering.as_json(session, policy, ours, gained))
    else:
        say("\n")
        answering.print_summary(session, policy, ours, gained)
        if show.stages:
            print_split(ours.split)
