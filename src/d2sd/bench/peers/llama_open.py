"""A llama.cpp model opened in a way that runs here; as a program, a trial of one way.

Its AMX kernels, compiled by GCC 12, load a tile configuration that was never written and kill the
process. So each way is tried in a process of its own first: with weights repacked for the CPU
(its default, which brings AMX in), or as they lie in the file. This file imports nothing of d2sd,
so that the trial starts at once.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

TRIAL_SECONDS = 300


@cache
def running_way(path: Path) -> bool:
    """Whether weights are to be repacked: the default where that runs, as they lie otherwise.

    Raises ValueError where neither runs.
    """
    for repacked in (True, False):
        if _runs(path, repacked):
            return repacked
    raise ValueError(
        f"llama.cpp cannot evaluate {path.name} on this machine: it crashed in a trial; build "
        "llama-cpp-python with another compiler or fewer CPU features"
    )


def open_llama(path: Path, repacked: bool, **settings: Any) -> Any:
    """A `Llama` of the file, silent."""
    package = importlib.import_module("llama_cpp")
    with _weights(repacked):
        return package.Llama(str(path), verbose=False, **settings)


@contextmanager
def _weights(repacked: bool) -> Iterator[None]:
    """`Llama` has no argument for it and takes the C library's defaults."""
    library: Any = importlib.import_module("llama_cpp.llama_cpp")
    defaults = library.llama_model_default_params

    def changed() -> Any:
        params = defaults()
        params.use_extra_bufts = repacked
        return params

    library.llama_model_default_params = changed
    try:
        yield
    finally:
        library.llama_model_default_params = defaults


def _runs(path: Path, repacked: bool) -> bool:
    # -P: beside this file lies another llama_cpp.py
    command = [sys.executable, "-P", __file__, str(path), "repacked" if repacked else "as it is"]
    try:
        return subprocess.run(command, capture_output=True, timeout=TRIAL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _trial(path: str, way: str) -> None:
    """Read many rows, then one."""
    llama = open_llama(Path(path), way == "repacked", n_ctx=128)
    llama.eval([1] * 64)
    llama.eval([1])


if __name__ == "__main__":
    _trial(*sys.argv[1:])
