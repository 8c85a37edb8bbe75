"""From options to loaded things. Imported by the commands only once they run: torch is slow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import transformers

from d2sd.bench.prompts import read_prompts
from d2sd.bench.workload import Workload
from d2sd.cli.options import (
    AnswerOptions,
    DrawOptions,
    ModelOptions,
    PolicyOptions,
    PromptsOptions,
    SamplingOptions,
    policy_text,
)
from d2sd.cli.terminal import note, notes
from d2sd.drafters.policies import Policy, parse_policy
from d2sd.generate import Request
from d2sd.sampling import Sampling
from d2sd.session import Message, ModelChoice, Session, open_session


def opened(
    options: ModelOptions, policies: Sequence[Policy], exact: bool = False, whole: bool = False
) -> Session:
    """Model, tokenizer and drafters, with notes on standard error about what takes time.

    `exact`: figures must not depend on which number type is faster on this machine. `whole`: the
    model keeps its layers beside compiled passes.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    choice = ModelChoice(
        options.model,
        options.drafter,
        options.second_drafter,
        options.dtype,
        options.device,
        options.compiled,
        keep_layers=whole,
        quantize=options.quantize,
    )
    waiting = notes.status(f"loading {options.model}") if notes.is_terminal else nullcontext()
    with waiting:
        return open_session(choice.exact() if exact else choice, policies, note)


def chosen_policy(options: PolicyOptions) -> Policy:
    """The policy with what `--branches`, `--budget` and `--verifier` add to it."""
    return parse_policy(policy_text(options), options.allow_lossy)


def sampling_of(options: SamplingOptions) -> Sampling:
    """A fresh sampling with its generator at the seed."""
    return draws_at(options.temperature, options)


def draws_at(temperature: float, options: DrawOptions) -> Sampling:
    """The same at a temperature of its own."""
    return Sampling(
        temperature=temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        rng=torch.Generator().manual_seed(options.seed),
    )


def prompt_text(prompt: str) -> str:
    """The prompt itself; `-` stands for standard input."""
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if not text.strip():
        raise ValueError("the prompt is empty; give some text, or - to read standard input")
    return text


def request_for(session: Session, text: str, answer: AnswerOptions, sampling: Sampling) -> Request:
    """The text as the model reads it, and where its answer ends."""
    as_chat: list[Message] = [{"role": "user", "content": text}]
    return Request(
        prompt=session.raw_prompt(text) if answer.raw else session.chat_prompt(as_chat),
        sampling=sampling,
        max_new_tokens=answer.max_new_tokens,
        stop_tokens=session.stop_tokens,
        stop_strings=tuple(answer.stop),
    )


def workload_of(options: PromptsOptions, sampling: SamplingOptions) -> Workload:
    """The file's prompts and how they are answered."""
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {options.max_new_tokens}; it must be 1 or more")
    return Workload(
        prompts=tuple(read_prompts(options.prompts, options.limit)),
        max_new_tokens=options.max_new_tokens,
        sampling=sampling_of(sampling),
        seed=sampling.seed,
    )
