"""Compiled passes for a batch in the user's cache: made once for a drafter on a machine."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from d2sd.drafters.network import DraftNetwork
from d2sd.engines.batches.batch_pass import BatchPass, EagerBatchPass, TargetEnds
from d2sd.engines.batches.compiled import (
    BatchDrafting,
    CompiledBatchPass,
    compile_batch,
    is_compiled,
)
from d2sd.tuning.packages import package_folder
from d2sd.tuning.refusals import CANNOT_COMPILE

log = logging.getLogger(__name__)


def compiled_pass(
    network: DraftNetwork,
    ends: TargetEnds,
    head: Tensor,
    slots: int,
    several: bool,
    once: Callable[[Callable[[], None]], None],
) -> BatchPass:
    """The passes of `network`, compiled if they aren't yet; eager ones where torch can't.

    `head` has the rows of the draft vocabulary; `slots` and `several` are `compile_batch`'s.
    `once` calls what it is given in one process of those that load the same drafters, while the
    others wait.
    """
    eager = EagerBatchPass(network, ends)
    own = {"slots": slots, "several": several, "threads": torch.get_num_threads()}
    folder = package_folder(
        BatchDrafting(network, head),
        head.device,
        config=str(network.config),
        **{name: str(value) for name, value in own.items()},
    )

    def make() -> None:
        if not is_compiled(folder):
            log.warning("compiling a drafter's passes, once: about a minute")
            compile_batch(network, head, slots, several, folder)

    try:
        once(make)
    except CANNOT_COMPILE as error:
        log.warning("torch can't compile a drafter here (%s): it runs eagerly", error)
    if not is_compiled(folder):
        return eager
    return CompiledBatchPass(folder, eager, slots, several)
