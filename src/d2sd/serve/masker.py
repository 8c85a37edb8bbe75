"""The process of `allowed.py` as the server sees it: asked, and started anew where it has ended."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from d2sd.serve import allowed
from d2sd.serve.allowed import Answer, Form

MOST_SECONDS = 10.0
"""Time for one question. Common forms take a second at first, then less than a millisecond."""
Process = subprocess.Popen[bytes]


class Masker:
    """Says which tokens a form allows next, within bounds of time and memory.

    `vocabulary` gives what xgrammar must know of the tokenizer; a question that takes longer than
    `seconds` is given up.
    """

    def __init__(
        self, vocabulary: Callable[[], dict[str, Any]], seconds: float = MOST_SECONDS
    ) -> None:
        self._vocabulary, self._seconds = vocabulary, seconds
        self._process: Process | None = None
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Make sure that it runs; takes seconds where it doesn't."""
        if not self._runs:
            with self._one_at_a_time:
                self._started()

    def allowed(self, key: int, form: Form, tokens: Sequence[int]) -> Int[Tensor, " words"]:
        """The bits of the tokens that may follow `tokens` in the answer `key`, 32 in a word.

        Raises ValueError where none may, or the form takes more than it may.
        """
        with self._one_at_a_time:
            process = self._started()
            try:
                answer = _asked(process, (key, form, list(tokens)))
            except (OSError, EOFError, pickle.UnpicklingError):
                _end(process)
                answer = "it takes too long to follow; simplify it"
        if isinstance(answer, str):
            raise ValueError(f"response_format cannot be followed: {answer}")
        return torch.frombuffer(bytearray(answer), dtype=torch.int32)

    def close(self) -> None:
        if self._process is not None:
            _end(self._process)

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _started(self) -> Process:
        if self._process is None or not self._runs:
            self.close()
            # -P: the modules beside the script have names of the standard library's
            command = [sys.executable, "-P", allowed.__file__, str(self._seconds)]
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
            _asked(self._process, self._vocabulary())
        return self._process


def _asked(process: Process, question: object) -> Answer:
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(question, process.stdin)
    process.stdin.flush()
    answer: Answer = pickle.load(process.stdout)
    return answer


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
