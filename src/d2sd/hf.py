"""D²SD inside transformers: `model.generate(**inputs, custom_generate=d2sd.custom_generate, …)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from d2sd.decode import decode
from d2sd.drafters.ngram import NgramDrafter
from d2sd.generate import WithinRoom
from d2sd.interfaces import Drafter
from d2sd.sampling import LogitsProcessor, Sampling
from d2sd.target.hf import HFTarget

BindDrafter = Callable[[HFTarget], Drafter]
"""Builds the drafter for a target. Its attribute `taps`, if any, names the layers to tap; its
method `at`, if any, gives the same for the temperature that tokens are drawn at."""

NOT_GIVEN = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def custom_generate(
    model: Any,
    input_ids: Int[Tensor, "batch prompt"],
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    drafter: Drafter | BindDrafter | None = None,
    **model_kwargs: Any,
) -> Int[Tensor, "1 length"] | GenerateDecoderOnlyOutput:
    """The tokens that `model.generate` gives without it, in fewer passes of the model.

    `drafter` is what builds a Drafter for a target, such as
    `d2sd.load_drafter("dual", first=…, second=…)`, or a Drafter that reads no features; without
    one, n-grams are copied from the text.
    Sampling uses the caller's processors and torch's own generator. transformers hands no
    streamer to a callable; bind it: `functools.partial(d2sd.custom_generate, streamer=…)`.
    Raises ValueError for what it cannot do: batches, padding, a filled cache, score outputs.
    """
    _refuse(input_ids, generation_config, model_kwargs)
    target = HFTarget(model, getattr(drafter, "taps", ()))
    drafter = _bound(drafter, target, generation_config)
    prompt = tuple(input_ids[0].tolist())
    end = min(generation_config.max_length, target.context_limit)
    sampling = _sampling(generation_config, logits_processor)
    ids, streamer = input_ids, model_kwargs.get("streamer")
    for token in _tokens(target, WithinRoom(drafter, end), prompt, sampling):
        ids = torch.cat([ids, ids.new_tensor([[token]])], dim=1)
        if streamer is not None:
            streamer.put(ids[0, -1:].cpu())
        if bool(stopping_criteria(ids, None).all()) or ids.shape[1] >= target.context_limit:
            break
    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=ids)
    return ids


def _tokens(
    target: HFTarget, drafter: Drafter, prompt: tuple[int, ...], sampling: Sampling
) -> Iterator[int]:
    for step in decode(target, drafter, prompt, sampling):
        yield from step.emitted


def _sampling(generation_config: Any, logits_processor: Any) -> Sampling:
    """Plain generation's draw: the processors hold temperature, top-k and all the rest."""
    processors: tuple[LogitsProcessor, ...] = ()
    if len(logits_processor):

        def process(
            ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
        ) -> Float[Tensor, "1 vocab"]:
            scores: Tensor = logits_processor(ids, logits.float())
            return scores

        processors = (process,)
    return Sampling(
        temperature=1.0 if generation_config.do_sample else 0.0,
        processors=processors,
        rng=torch.default_generator,
    )


def _bound(
    drafter: Drafter | BindDrafter | None, target: HFTarget, generation_config: Any
) -> Drafter:
    if drafter is None:
        return NgramDrafter()
    if isinstance(drafter, Drafter):
        return drafter
    at: Callable[[float], BindDrafter] | None = getattr(drafter, "at", None)
    return (at(_temperature(generation_config)) if at else drafter)(target)


def _temperature(generation_config: Any) -> float:
    """The temperature of the draws; 0 is greedy. transformers leaves it None for its default, 1."""
    if not generation_config.do_sample:
        return 0.0
    return float(1.0 if generation_config.temperature is None else generation_config.temperature)


def _refuse(input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
    if input_ids.shape[0] != 1:
        raise ValueError(
            f"custom_generate answers one sequence at a time and was given {input_ids.shape[0]} "
            "rows; call it once per prompt, without beams or num_return_sequences"
        )
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool(mask.bool().all()):
        raise ValueError("attention_mask hides a part of the prompt; leave the padding out")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "past_key_values is filled already; pass the whole prompt and no cache: "
            "custom_generate keeps its own"
        )
    asked = [name for name in NOT_GIVEN if getattr(generation_config, name, None)]
    if generation_config.return_dict_in_generate and asked:
        raise ValueError(f"custom_generate gives sequences only; leave out {', '.join(asked)}")
