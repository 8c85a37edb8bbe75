"""Several processes training one drafter: each takes a share of every batch.

Data parallel: every process holds the whole drafter and the whole frozen target. Gradients are
summed once a step, after all micro-batches, so a step is the one that a single process would make
with the same batch. Started by `accelerate launch` or `torchrun`, which set the environment.

Drafters are small; what outgrows one GPU is the target. It is frozen, and only its embedding, its
head and one transformers pass are used. So spreading it (`device_map`) or sharding it (FSDP) would
come in where `cli/training.py` loads it, and nowhere in the loop; neither is done yet.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one of them evaluates, or fills a store, alone."""


class Processes(ABC):
    """The processes of one training, of which this is number `rank`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """This process's part of `items` things; parts differ by at most one in size."""
        return part(range(items), self.rank, self.count)

    @abstractmethod
    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    @abstractmethod
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's."""

    @abstractmethod
    def wait(self) -> None:
        """Go on when all processes have come here."""

    @abstractmethod
    def close(self) -> None:
        """Part from the others; call it last."""


class Alone(Processes):
    """The only process."""

    def add(self, tensors: Iterable[Tensor]) -> None:
        pass

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class Together(Processes):
    """One of several processes, joined by torch.distributed (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self, on_cpu: bool) -> None:
        from accelerate import PartialState  # type: ignore[import-untyped]

        self._state = PartialState(cpu=on_cpu, timeout=PATIENCE)
        self.rank, self.count = self._state.process_index, self._state.num_processes

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        self._state.wait_for_everyone()

    def close(self) -> None:
        self._state.destroy_process_group()


def processes_here(device: torch.device) -> Processes:
    """All processes that the launcher started; this one alone where there is no launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    return Together(on_cpu=device.type == "cpu")


def local_device(device: torch.device) -> torch.device:
    """This process's own GPU where `device` only says that it is one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def part(items: range, number: int, count: int) -> range:
    """The `number`-th of `count` consecutive parts, as even as can be."""
    cuts = [len(items) * i // count for i in (number, number + 1)]
    return items[cuts[0] : cuts[1]]
