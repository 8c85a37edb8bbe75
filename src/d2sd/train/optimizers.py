"""Who moves the weights: Muon for matrices and AdamW for the rest, or AdamW for all."""

from __future__ import annotations

import torch
from torch import nn

OPTIMIZERS = ("muon", "adamw")


def make_optimizers(network: nn.Module, name: str) -> tuple[torch.optim.Optimizer, ...]:
    """Optimizers of the matrices and of the vectors, in this order; the caller sets their rates.

    Muon's update is scaled to the size of AdamW's (arXiv 2502.16982), so one rate fits both.
    Raises ValueError for a name that isn't in `OPTIMIZERS`.
    """
    matrices = [p for p in network.parameters() if p.ndim == 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    first: torch.optim.Optimizer
    if name == "muon":
        first = torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    elif name == "adamw":
        first = torch.optim.AdamW(matrices, betas=(0.9, 0.95), weight_decay=0.01)
    else:
        raise ValueError(f"optimizer is {name!r}; choose {' or '.join(OPTIMIZERS)}")
    return first, torch.optim.AdamW(vectors, betas=(0.9, 0.95), weight_decay=0.0)
