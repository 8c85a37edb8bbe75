"""Policies measured against each other: same target, same prompts, same process, turn by turn.

Tokens per second are new tokens by decoding time. Prefill, which is the same for every policy, is
left out, and given besides with it counted. Every conversation starts from an empty target cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from d2sd.bench.prompts import Prompt
from d2sd.drafters.policies import Policy
from d2sd.generate import Generation, Request, generate
from d2sd.interfaces import Drafter
from d2sd.sampling import Sampling
from d2sd.session import Message, Session
from d2sd.stages import Split, Stage, Stages, split, untimed

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Workload:
    """What is answered, and how: every policy gets the same draws, seeded anew for each turn."""

    prompts: tuple[Prompt, ...]
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0

    def seeded(self, number: int, turn: int) -> Sampling:
        """The sampling of one turn of prompt `number`, its generator at the start."""
        rng = torch.Generator().manual_seed(self.seed + 1009 * number + turn)
        return replace(self.sampling, rng=rng)


@dataclass(frozen=True)
class Turn:
    """One answered turn: the tokens the target read and what it said."""

    request: Request
    answer: Generation


@dataclass(frozen=True)
class Figures:
    """One policy's row. Totals weigh every token alike; the median weighs every prompt alike."""

    acceptance_length: float
    tokens_per_second: float
    median_tokens_per_second: float
    tokens_per_second_with_prefill: float
    new_tokens: int
    steps: int
    nodes_per_step: float
    identical_to_none: bool | None
    speedup_over_none: float | None


@dataclass(frozen=True)
class Comparison:
    """Every policy's figures, and where its steps' time went, under the name it was given by."""

    prompts: int
    policies: dict[str, Figures]
    splits: dict[str, Split]


def measure(
    session: Session,
    policies: Sequence[Policy],
    workload: Workload,
    on_prompt: Callable[[int], object] = lambda done: None,
) -> Comparison:
    """Answer every prompt with every policy, prompt by prompt; the order rotates.

    `identical_to_none` compares token ids with the policy `none`, and is None when that is not
    among the policies. A short answer to the first prompt warms each policy up.
    """
    names = [policy.text for policy in policies]
    if len(set(names)) < len(names):
        raise ValueError(f"the policies {', '.join(names)} name one twice; give each once")
    temperature = workload.sampling.temperature
    stages = {name: Stages(session.target.device) for name in names}
    drafters = {
        policy.text: session.drafter(policy, temperature, stages[policy.text])
        for policy in policies
    }
    answers: dict[str, list[list[Generation]]] = {name: [] for name in names}
    warm_up = replace(workload, max_new_tokens=WARM_UP_TOKENS)
    for name in names:
        list(conversation(session, drafters[name], warm_up, 0))
        stages[name].forget()
    for number in range(len(workload.prompts)):
        for name in _rotated(names, number):
            turns = conversation(session, drafters[name], workload, number, stages[name])
            answers[name].append([turn.answer for turn in turns])
        on_prompt(number + 1)
    baseline = next((answers[policy.text] for policy in policies if policy.name == "none"), None)
    return Comparison(
        len(workload.prompts),
        {name: figures(answers[name], baseline) for name in names},
        {name: steps_split(answers[name], stages[name]) for name in names},
    )


def conversation(
    session: Session,
    drafter: Drafter,
    workload: Workload,
    number: int,
    stage: Stage = untimed,
) -> Iterator[Turn]:
    """Answer the turns of prompt `number`; the model's own answers are fed back."""
    prompt = workload.prompts[number]
    messages: list[Message] = []
    for turn, text in enumerate(prompt.turns):
        messages.append({"role": "user", "content": text})
        request = Request(
            prompt=session.chat_prompt(messages),
            sampling=workload.seeded(number, turn),
            max_new_tokens=workload.max_new_tokens,
            stop_tokens=session.stop_tokens,
        )
        if turn == 0:
            session.target.prefill(request.prompt[:1])  # empties the cache: one token is no row
        try:
            answer = generate(session.target, drafter, request, session.tokenizer, stage)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id}: {error}") from error
        yield Turn(request, answer)
        messages.append({"role": "assistant", "content": answer.text})


def figures(
    answers: Sequence[Sequence[Generation]], baseline: Sequence[Sequence[Generation]] | None
) -> Figures:
    """A policy's row from its answers, prompt by prompt, and those of plain decoding."""
    everything = [answer for turns in answers for answer in turns]
    steps = sum(answer.steps for answer in everything)
    speed = _speed(everything)
    return Figures(
        acceptance_length=_tokens(everything) / steps,
        tokens_per_second=speed,
        median_tokens_per_second=statistics.median(_speed(turns) for turns in answers),
        tokens_per_second_with_prefill=_tokens(everything)
        / sum(answer.seconds + answer.prefill_seconds for answer in everything),
        new_tokens=_tokens(everything),
        steps=steps,
        nodes_per_step=sum(answer.nodes for answer in everything) / steps,
        identical_to_none=None if baseline is None else _ids(answers) == _ids(baseline),
        speedup_over_none=None
        if baseline is None
        else speed / _speed([answer for turns in baseline for answer in turns]),
    )


def steps_split(answers: Sequence[Sequence[Generation]], stages: Stages) -> Split:
    """Where the time of all steps went that gave `answers` and were timed by `stages`."""
    everything = [answer for turns in answers for answer in turns]
    total = sum(answer.seconds for answer in everything)
    return split(stages.seconds, total, sum(answer.steps for answer in everything))


def _tokens(answers: Sequence[Generation]) -> int:
    return sum(answer.new_tokens for answer in answers)


def _speed(answers: Sequence[Generation]) -> float:
    return _tokens(answers) / sum(answer.seconds for answer in answers)


def _ids(answers: Sequence[Sequence[Generation]]) -> list[list[tuple[int, ...]]]:
    return [[answer.token_ids for answer in turns] for turns in answers]


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]
