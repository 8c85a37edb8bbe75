"""Ahead-of-time compilation of exported programs: settings, package files, sizes left free."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

FEWEST = 2
"""The smallest size that can be left free: torch.export makes constants of 0 and 1."""


def compile_program(program: ExportedProgram, package: Path, device: torch.device) -> None:
    """Write `program`, compiled for `device` and with its weights, to the file `package`.

    On the CPU weights are laid out as the machine multiplies them fastest. A kill leaves no half
    package. Whatever torch cannot do here it says as an exception of its own.
    """
    package.parent.mkdir(parents=True, exist_ok=True)
    unfinished = package.with_suffix(".part.pt2")
    on_cpu = device.type == "cpu"
    settings = {"freezing": on_cpu, "cpp.enable_concat_linear": on_cpu}
    with torch.no_grad(), torch._inductor.config.patch(settings):
        torch._inductor.aoti_compile_and_package(program, package_path=str(unfinished))
    unfinished.replace(package)


class Marker:
    """Says a number to a compiled program, which takes no numbers: a tensor of that length."""

    def __init__(self, device: torch.device) -> None:
        self._rows = torch.empty(0, device=device)

    def __call__(self, length: int) -> Tensor:
        """A tensor of `length` rows with nothing in them; at least `FEWEST` are needed."""
        if length > len(self._rows):
            self._rows = self._rows.new_empty(2 * length)
        return self._rows[:length]
