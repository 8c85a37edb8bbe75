"""Other programs in the same table, each behind a small adapter: the same weights and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from d2sd.bench.contenders import Absent, Contender
from d2sd.bench.peers import dflash, huggingface, llama_cpp
from d2sd.session import Session

Opener = Callable[[Session, str | None], Contender]

_OPENERS: Mapping[str, Opener] = {
    "transformers": huggingface.open_generate,
    "transformers:prompt-lookup": huggingface.open_prompt_lookup,
    "transformers:assisted": huggingface.open_assisted,
    "dflash": dflash.open_dflash,
    "llama.cpp": llama_cpp.open_plain,
    "llama.cpp:lookup": llama_cpp.open_lookup,
}

PEERS = tuple(_OPENERS)
"""Their names, in the order of the table."""


def open_peers(
    names: Sequence[str], session: Session, assistant: str | None = None
) -> list[Contender | Absent]:
    """One contender for each name, or why there is none: not installed, no drafter, no weights.

    They run the session's own model, which must have kept its layers (`ModelChoice.keep_layers`).
    `assistant` is a folder, a hub id or a model that d2sd knows, for `transformers:assisted`.
    Raises ValueError for a name that is none of `PEERS`.
    """
    for name in names:
        if name not in _OPENERS:
            raise ValueError(f"there is no peer {name!r}; choose among {', '.join(PEERS)}")
    return [_opened(name, session, assistant) for name in names]


def _opened(name: str, session: Session, assistant: str | None) -> Contender | Absent:
    try:
        return _OPENERS[name](session, assistant)
    except ValueError as error:
        return Absent(name, str(error))
