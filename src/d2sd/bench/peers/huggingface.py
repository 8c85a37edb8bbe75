"""transformers' own `generate`: plain, with prompt lookup, and with an assistant model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import GenerationConfig
from transformers.utils import logging

from d2sd.bench.peers.watch import PassLog, Peer, check_plain, dtype_name, seeded, watched
from d2sd.generate import Request
from d2sd.models.resolve import resolve
from d2sd.session import Session, load_tokenizer
from d2sd.target.load import load_model

LOOKUP_TOKENS = 10
"""The most tokens that prompt lookup drafts: what transformers' class takes by default."""


class GeneratePeer(Peer):
    """The session's model answers through `generate`; `settings` go into its generation config."""

    def __init__(self, name: str, session: Session, **settings: Any) -> None:
        check_plain(session)
        super().__init__(name, session)
        self._settings = settings
        self.arithmetic = f"{dtype_name(session)}, transformers {transformers.__version__}"

    def _generate(self, request: Request, room: int, log: PassLog) -> Sequence[int]:
        model = self._session.model
        prompt = torch.tensor([request.prompt], device=model.device)
        with (
            torch.inference_mode(),
            undisturbed(model),
            seeded(request.sampling, model.device),
            watched(model, log),
        ):
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self._config(request, room),
                **self._help(request),
            )
        return ids[0, len(request.prompt) :].tolist()

    def _help(self, request: Request) -> dict[str, Any]:
        """Further arguments of `generate`."""
        return {}

    def _config(self, request: Request, room: int) -> GenerationConfig:
        sampling = request.sampling
        stops = sorted(request.stop_tokens) or None
        how: dict[str, Any] = {}
        if sampling.temperature > 0:
            how = {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p or None,
            }
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=sampling.temperature > 0,
            eos_token_id=stops,
            pad_token_id=stops[0] if stops else None,
            **how,
            **self._settings,
        )


class AssistedPeer(GeneratePeer):
    """`generate` with a smaller model that drafts token by token.

    One of the same vocabulary drafts token ids; any other one drafts text that is tokenised anew,
    which transformers calls universal assisted decoding. That one takes part in greedy decoding
    only: sampled with transformers 5.23, its tokens were not drawn from the target's law (288
    tokens of SmolLM2-135M at temperature 1 fell short of the expected log-probability by 1.2 nats
    each, eight standard errors; plain generate and prompt lookup by none).
    """

    def __init__(self, name: str, session: Session, assistant: str) -> None:
        super().__init__(name, session)
        folder = resolve(assistant, session.tell)
        model = load_model(folder, session.target.dtype).to(session.target.device)
        model.generation_config = GenerationConfig()  # the assistant drafts as the target is asked
        self._assistant = model.eval()
        self._tokenizers = tokenizers(session, model, load_tokenizer(folder), assistant)
        self.sampled = not self._tokenizers
        kind = "universal assistant" if self._tokenizers else "assistant"
        self.arithmetic += f", {kind} {assistant}"

    def _check(self, request: Request) -> None:
        super()._check(request)
        if request.sampling.temperature > 0 and not self.sampled:
            raise ValueError(
                f"{self.name} with an assistant of other tokens does not draw from the target's "
                "law; ask it at temperature 0, or give an assistant of the same tokenizer"
            )

    def _help(self, request: Request) -> dict[str, Any]:
        return {"assistant_model": self._assistant, **self._tokenizers}


def tokenizers(session: Session, model: Any, own: Any, assistant: str) -> dict[str, Any]:
    """What `generate` must be told of the tokenizers: nothing where both are the same.

    Raises ValueError for a pair that transformers takes for the same by its size alone.
    """
    size = model.config.get_text_config(decoder=True).vocab_size
    if size != session.target.vocab_size:
        return {"tokenizer": session.tokenizer, "assistant_tokenizer": own}
    if own.get_vocab() != session.tokenizer.get_vocab():
        raise ValueError(
            f"the assistant {assistant} has as many tokens as {session.name} and not the same "
            "ones, which transformers cannot tell apart; choose another assistant"
        )
    return {}


def open_generate(session: Session, assistant: str | None) -> Peer:
    """Plain generate."""
    return GeneratePeer("transformers", session)


def open_prompt_lookup(session: Session, assistant: str | None) -> Peer:
    """Drafts are copied from what followed the last one or two tokens earlier."""
    peer = GeneratePeer(
        "transformers:prompt-lookup", session, prompt_lookup_num_tokens=LOOKUP_TOKENS
    )
    peer.arithmetic += f", {LOOKUP_TOKENS} tokens looked up"
    return peer


def open_assisted(session: Session, assistant: str | None) -> Peer:
    """Raises ValueError where no assistant is given."""
    if assistant is None:
        raise ValueError("no smaller model of this tokenizer is at hand; give one with --assistant")
    return AssistedPeer("transformers:assisted", session, assistant)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """transformers keeps quiet, and none of the model's own generation settings mixes in."""
    verbosity, settings = logging.get_verbosity(), model.generation_config
    logging.set_verbosity_error()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
        logging.set_verbosity(verbosity)
