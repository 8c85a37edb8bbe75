"""Run as a process of its own: which tokens a form allows next.

There are forms that keep xgrammar busy for minutes between two tokens, and nothing can interrupt
it; a process can end itself. Questions and answers are pickles on standard input and output; the
argument is the most seconds for one. Imports nothing of d2sd, so that it is up soon.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

START_SECONDS = 120
MOST_BYTES = 4 * 2**30
CACHED_BYTES = 256 * 2**20

Form = tuple[str, str]
"""Its kind ("regex", "schema" or "json") and its text."""
Answer = bytes | str
"""A bit for each token, 32 in an integer, lowest first; or why there is none."""


class Matchers:
    """The matcher of the answer that is being made, and the forms compiled before."""

    def __init__(self, package: Any, vocabulary: dict[str, Any]) -> None:
        info = package.TokenizerInfo(**vocabulary, vocab_type=package.VocabType.RAW)
        self._package = package
        self._compiler = package.GrammarCompiler(info, cache_limit_bytes=CACHED_BYTES)
        self._mask = package.allocate_token_bitmask(1, info.vocab_size)
        self._key: int | None = None
        self._matcher: Any = None
        self._read = 0

    def allowed(self, key: int, form: Form, tokens: list[int]) -> Answer:
        """After `tokens` of the answer `key`, which grow from question to question."""
        if key != self._key or len(tokens) < self._read:
            self._matcher = self._package.GrammarMatcher(self._compiled(*form))
            self._key, self._read = key, 0
        for token in tokens[self._read :]:
            if not self._matcher.accept_token(token):
                return "a token was drawn that the form does not allow"
        self._read = len(tokens)
        self._matcher.fill_next_token_bitmask(self._mask)
        if not self._mask.any():
            return "the form allows no token here"
        answer: bytes = self._mask.numpy().tobytes()
        return answer

    def _compiled(self, kind: str, text: str) -> Any:
        if kind == "regex":
            return self._compiler.compile_regex(text)
        if kind == "schema":
            # white space as wished would let a small model write nothing else for ever
            return self._compiler.compile_json_schema(text, any_whitespace=False)
        return self._compiler.compile_builtin_json_grammar()


def main(most_seconds: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which finishes first
    _bound_memory()
    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whatever a library prints
    _ends_after(START_SECONDS)
    matchers = Matchers(importlib.import_module("xgrammar"), pickle.load(source))
    answer: Answer = ""
    while True:
        faulthandler.cancel_dump_traceback_later()
        _send(answer, sink)
        try:
            key, form, tokens = pickle.load(source)
        except EOFError:
            return
        _ends_after(most_seconds)
        try:
            answer = matchers.allowed(key, form, tokens)
        except RuntimeError as error:
            answer = " ".join(str(error).split())[:300]


def _send(answer: Answer, sink: BinaryIO) -> None:
    pickle.dump(answer, sink)
    sink.flush()


def _ends_after(seconds: float) -> None:
    """The process ends by then, whatever it is doing."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def _bound_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # where the system can
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


if __name__ == "__main__":
    main(float(sys.argv[1]))
