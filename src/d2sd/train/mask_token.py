"""The mask token: one that the target embeds and never writes or reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

RESERVED = re.compile(r"reserved|unused|extra|placeholder", re.IGNORECASE)


@dataclass(frozen=True)
class MaskToken:
    """The token's id, and in a few words why it was chosen."""

    id: int
    reason: str


def choose_mask_token(tokenizer: Any, vocab_size: int, used: Iterable[int]) -> MaskToken:
    """The first of these that is not among the `used` tokens and that the target embeds:

    the tokenizer's mask token, an added token with "mask" in its name, a reserved one, a row of the
    embedding past the tokenizer's end (as DFlash's drafters for Qwen3 have it), any other added
    token but the ends and the padding. Raises ValueError when there is none.
    """
    taken = set(used)
    for token, reason in _choices(tokenizer, vocab_size):
        if token < vocab_size and token not in taken:
            return MaskToken(token, reason)
    raise ValueError(
        "the target's tokenizer has no token to spare for the mask; name one that its texts never "
        "hold, with --set mask_token_id=ID"
    )


def _choices(tokenizer: Any, vocab_size: int) -> Iterator[tuple[int, str]]:
    added = sorted((i, str(token)) for i, token in tokenizer.added_tokens_decoder.items())
    if getattr(tokenizer, "mask_token_id", None) is not None:
        yield tokenizer.mask_token_id, "the tokenizer's mask token"
    yield from ((i, f"named {name}") for i, name in added if "mask" in name.lower())
    yield from ((i, f"named {name}") for i, name in added if RESERVED.search(name))
    yield from ((i, "past the tokenizer's end") for i in range(len(tokenizer), vocab_size))
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    ends.add(getattr(tokenizer, "unk_token_id", None))
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for i, name in added:
        if i not in ends and name not in template:
            yield i, f"{name}, which no response holds"
