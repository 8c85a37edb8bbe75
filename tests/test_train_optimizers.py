"""Optimizers by name: who moves what, and steps of comparable size."""

import pytest
import torch
from torch import nn

from d2sd.train.optimizers import OPTIMIZERS, make_optimizers


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(16, 24))
        self.vector = nn.Parameter(torch.ones(24))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_come_first_and_vectors_second(name):
    network = Small()
    matrices, vectors = make_optimizers(network, name)
    assert matrices.param_groups[0]["params"] == [network.matrix]
    assert vectors.param_groups[0]["params"] == [network.vector]


def test_one_rate_fits_both():
    sizes = {}
    for name in OPTIMIZERS:
        network = Small()
        before = network.matrix.detach().clone()
        network.matrix.grad = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
        matrices, _ = make_optimizers(network, name)
        matrices.param_groups[0]["lr"] = 0.01
        matrices.param_groups[0]["weight_decay"] = 0.0
        matrices.step()
        sizes[name] = (network.matrix - before).square().mean().sqrt().item() / 0.01
    assert 0.1 < sizes["muon"] / sizes["adamw"] < 1  # 0.2, the usual size of AdamW's, once warm


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'sgd'; choose muon or adamw"):
        make_optimizers(Small(), "sgd")
