"""How a prompt is put to a model: its chat template, its token ids, its ends of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

Message = dict[str, str]
"""One turn of a conversation: its role and its content."""


def chat_ids(
    tokenizer: Any, name: str, messages: Sequence[Message], thinking: bool | None = None
) -> tuple[int, ...]:
    """A conversation in the chat template of the tokenizer of `name`, ready for an answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {name} has no chat template; use --raw to continue the "
            "prompt as plain text"
        )
    flags = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **flags
        )
    except TemplateError as error:
        raise ValueError(f"the chat template of {name} refuses the conversation: {error}") from None
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def raw_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Plain text, with the tokenizer's own first token where it has one."""
    return tuple(tokenizer(text)["input_ids"])


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises ValueError when a model of `vocab_size` tokens doesn't know all of these."""
    if ids and max(ids) >= vocab_size:
        raise ValueError(
            f"the tokenizer of {name} gives token {max(ids)}, the model knows "
            f"{vocab_size} tokens; they do not belong together"
        )


def end_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The model's and the tokenizer's ends of an answer."""
    ends = generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)
