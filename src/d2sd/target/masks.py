"""What each node of a tree may look at, and where it stands: the definition.

Every faster attention path must give the numbers this mask gives.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.tree import TokenTree


def tree_mask(
    tree: TokenTree,
    committed: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "1 1 nodes context"]:
    """Additive attention mask: 0 where a node sees, the dtype's minimum where it does not.

    The columns are the `committed` rows of the cache, then the tree's own nodes. Every node sees
    all committed rows, its ancestors and itself. The chain of a prompt is a tree like any other,
    which makes this the causal mask of prefill too.
    """
    hidden = ~tree.visibility().to(device)
    mask = torch.zeros(1, 1, len(tree), committed + len(tree), dtype=dtype, device=device)
    mask[0, 0, :, committed:].masked_fill_(hidden, torch.finfo(dtype).min)
    return mask


def tree_positions(
    tree: TokenTree, committed: int, device: torch.device | str = "cpu"
) -> Int[Tensor, "1 nodes"]:
    """Position of every node in the sequence: siblings compete for the same one."""
    return torch.tensor([[committed + depth for depth in tree.depths]], device=device)
