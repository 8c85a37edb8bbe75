"""The entry point in `vllm.general_plugins`, run in each of vLLM's processes."""

from __future__ import annotations

import logging

from d2sd.engines.batches.hooks import missing
from d2sd.engines.vllm import hooks

log = logging.getLogger("vllm.d2sd")


def register() -> None:
    """Say whether trees can be had from this vLLM. Changes nothing by itself: the worker does."""
    if faults := missing(hooks.HOOKS):
        log.warning("d2sd's trees are refused: %s", "; ".join(faults))
    else:
        log.debug("d2sd's trees fit this vLLM; --worker-cls d2sd.engines.vllm.worker.CPUTreeWorker")
