"""From the options of `d2sd regenerate` to who answers. Imported once the command runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import transformers

from d2sd.answers.batched import BatchedAnswerer
from d2sd.answers.conversations import Draws, Wording
from d2sd.answers.endpoint import (
    Asking,
    Connection,
    Endpoint,
    EndpointAnswerer,
    key_from,
    served_model,
)
from d2sd.answers.questions import Answerer
from d2sd.cli.regenerate import AskedOptions, DrawingOptions, EndpointOptions, TargetOptions
from d2sd.cli.terminal import note
from d2sd.models.resolve import resolve
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, load_tokenizer
from d2sd.target.load import load_model
from d2sd.wording import end_tokens


@dataclass(frozen=True)
class Source:
    """Who answers, in which words, and all settings that the answers depend on."""

    answerer: Answerer
    wording: Wording
    draws: Draws
    device: torch.device
    settings: dict[str, object]


def source_of(
    asked: AskedOptions, drawing: DrawingOptions, target: TargetOptions, server: EndpointOptions
) -> Source:
    """The model loaded here, or a server. Raises ValueError for what doesn't fit."""
    if drawing.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {drawing.max_new_tokens}; it must be 1 or more")
    if target.batch is not None and target.batch < 1:
        raise ValueError(f"batch is {target.batch}; it must be 1 or more")
    Sampling(top_p=drawing.top_p)  # refuses what is no mass
    transformers.utils.logging.disable_progress_bar()
    if target.threads:
        torch.set_num_threads(target.threads)
    folder = resolve(target.model, note)
    wording = Wording(load_tokenizer(folder), target.model, asked.raw, asked.system)
    draws = Draws(_temperatures(drawing.temperatures), drawing.seed, asked.max_prompt_tokens)
    if server.endpoint is None:
        source = _loaded(folder, wording, draws, drawing, target)
    else:
        source = _served(folder, wording, draws, drawing, server)
    settings = {
        **source.settings,
        "model": target.model,
        "raw": asked.raw,
        "system": asked.system,
        "max_new_tokens": drawing.max_new_tokens,
        "max_prompt_tokens": source.draws.max_prompt_tokens,
        "temperatures": draws.temperatures,
        "top_p": drawing.top_p,
        "seed": drawing.seed,
    }
    return replace(source, settings=settings)


def _loaded(
    folder: str, wording: Wording, draws: Draws, drawing: DrawingOptions, target: TargetOptions
) -> Source:
    choice = ModelChoice(target.model, dtype=target.dtype, device=target.device).exact()
    device, dtype = choice.torch_device(), choice.torch_dtype()
    model = load_model(folder, dtype).to(device)
    answerer = BatchedAnswerer(
        model,
        wording.tokenizer,
        end_tokens(wording.tokenizer, model.generation_config),
        drawing.max_new_tokens,
        drawing.top_p,
        target.batch,
    )
    config = model.config.get_text_config(decoder=True)
    longest = config.max_position_embeddings - 1  # leaves room for one token
    return Source(
        answerer,
        replace(wording, vocab_size=config.vocab_size),
        replace(draws, max_prompt_tokens=min(draws.max_prompt_tokens or longest, longest)),
        device,
        {"dtype": str(dtype), "device": device.type, "batch": answerer.batch},
    )


def _served(
    folder: str, wording: Wording, draws: Draws, drawing: DrawingOptions, server: EndpointOptions
) -> Source:
    assert server.endpoint is not None
    key = key_from(server.api_key_env)
    endpoint = Endpoint(server.endpoint, key, parallel=server.concurrency)
    name = server.endpoint_model or served_model(Connection(endpoint), "--endpoint-model")
    try:
        described = transformers.GenerationConfig.from_pretrained(folder)
    except OSError:  # no such file beside the tokenizer
        described = transformers.GenerationConfig()
    asking = Asking(name, drawing.max_new_tokens, drawing.top_p, wording.raw)
    stops = end_tokens(wording.tokenizer, described)
    answerer = EndpointAnswerer(endpoint, asking, wording.tokenizer, stops)
    settings: dict[str, object] = {"endpoint": server.endpoint, "endpoint_model": name}
    return Source(answerer, wording, draws, torch.device("cpu"), settings)


def _temperatures(words: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise ValueError(
            f'temperatures are {words!r}; give numbers with commas between them, such as "0,0,0.8"'
        ) from None
