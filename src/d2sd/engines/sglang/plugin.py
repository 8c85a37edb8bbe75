"""The entry point in `sglang.srt.plugins`, run in each of SGLang's processes."""

from __future__ import annotations

import logging

from d2sd.engines.batches.hooks import missing
from d2sd.engines.sglang import hooks

log = logging.getLogger(__name__)

NAME = "D2SD"


def register() -> None:
    """Make `--speculative-algorithm D2SD` known. Says what is missing where that can't be."""
    if faults := missing(hooks.REGISTRATION):
        log.warning("d2sd is refused: %s", "; ".join(faults))
        return
    from d2sd.engines.sglang import algorithm

    algorithm.register(NAME)
