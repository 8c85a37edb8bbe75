"""llama.cpp through `llama-cpp-python`, on the GGUF file that the target was converted from.

Its arithmetic is its own: weights stay in the file's 4-bit blocks and what they meet is rounded
to 8 bits, so tokens may differ from the target's. It gets the same token ids, as many threads as
torch, and an empty cache for every answer. Its filters come before its temperature, ours after:
with both at work (temperature neither 0 nor 1) the laws differ as well.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader

from d2sd.bench.peers.llama_open import open_llama, running_way
from d2sd.bench.peers.watch import PassLog, Peer, drawn_seed
from d2sd.generate import Request
from d2sd.models.resolve import gguf_file
from d2sd.session import Session

NOTED = 0.01
"""Number types of fewer of the weights than this are not named."""


class LlamaCppPeer(Peer):
    """`Llama.generate`, with or without a draft model of its own."""

    def __init__(self, name: str, session: Session, llama: Any, arithmetic: str) -> None:
        super().__init__(name, session)
        self._llama = llama
        self.arithmetic = arithmetic

    def _generate(self, request: Request, room: int, log: PassLog) -> Sequence[int]:
        llama, sampling = self._llama, request.sampling
        llama.reset()  # otherwise it keeps the rows that this prompt shares with the last answer
        if sampling.temperature > 0:
            llama.set_seed(drawn_seed(sampling))
        tokens: list[int] = []
        with evaluations(llama, log):
            for token in llama.generate(
                request.prompt,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                temp=sampling.temperature,
            ):
                tokens.append(token)
                if token in request.stop_tokens or len(tokens) == room:
                    break
        return tokens


@contextmanager
def evaluations(llama: Any, log: PassLog) -> Iterator[None]:
    """Every evaluation of `llama` in the block is a pass in `log`."""
    evaluate = llama.eval

    def noted(tokens: Sequence[Any]) -> None:
        log.begins(llama.n_tokens, tuple(int(token) for token in tokens))  # NumPy's among them
        evaluate(tokens)
        log.ends()

    llama.eval = noted
    try:
        yield
    finally:
        del llama.eval  # the class's own shows again


def open_plain(session: Session, assistant: str | None) -> Peer:
    """Token by token."""
    return _opened("llama.cpp", session, lookup=False)


def open_lookup(session: Session, assistant: str | None) -> Peer:
    """With drafts copied from the text (LlamaPromptLookupDecoding, its own defaults)."""
    return _opened("llama.cpp:lookup", session, lookup=True)


def _opened(name: str, session: Session, lookup: bool) -> Peer:
    package = imported()
    if session.quantize != "none":
        raise ValueError(
            f"the target is made of {session.quantize} layers here, which no GGUF file holds; "
            "bench with --quantize none"
        )
    on_gpu = session.target.device.type == "cuda"
    if on_gpu and not package.llama_supports_gpu_offload():
        raise ValueError(
            "the target is on a GPU and llama-cpp-python was built for CPUs; build it for the "
            "GPU or bench with --device cpu"
        )
    path = gguf_file(session.name, session.tell)
    repacked = running_way(path)
    llama = open_llama(
        path,
        repacked,
        n_ctx=session.target.context_limit,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        n_gpu_layers=-1 if on_gpu else 0,
        draft_model=lookup_draft() if lookup else None,
        logits_all=lookup,  # with a draft it keeps all rows, and has room for them only if told
    )
    if llama.n_vocab() != session.target.vocab_size:
        raise ValueError(
            f"{path.name} knows {llama.n_vocab()} tokens and {session.name} "
            f"{session.target.vocab_size}; they are not the same model"
        )
    words = f"{weight_types(path)} weights, llama.cpp {package.__version__}"
    return LlamaCppPeer(name, session, llama, words if repacked else f"{words}, not repacked")


def imported() -> Any:
    """The package. Raises ValueError where it is missing or cannot be imported."""
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"llama-cpp-python cannot be imported ({error}); install it by pip install "
            "'d2sd[peers]', which takes a C++ compiler"
        ) from None


def lookup_draft() -> Any:
    return importlib.import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding()


def weight_types(path: Path) -> str:
    """The number types of a GGUF file's weights, the most frequent first: "Q4_1 and Q8_0"."""
    sizes: Counter[str] = Counter()
    for tensor in GGUFReader(path).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    total = sum(sizes.values())
    return " and ".join(name for name, size in sizes.most_common() if size > NOTED * total)
