"""The chunked cross-entropy against the plain one."""

import pytest
import torch

from d2sd.train import loss as loss_module
from d2sd.train.loss import soft_cross_entropy


def plain(hidden, head, ids, probs, weights):
    log_q = (hidden @ head.T).log_softmax(-1).gather(1, ids)
    return (weights * (probs * -log_q).sum(-1)).sum() / weights.sum()


@pytest.mark.parametrize("chunk", [4, 7, 64])
def test_loss_and_gradient_equal_the_plain_formula(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(23, 6, requires_grad=True)
    head = torch.randn(11, 6)
    # labels of a slot may repeat: the emitted token is usually among the target's candidates
    ids, probs = torch.randint(11, (23, 3)), torch.rand(23, 3)
    weights = torch.rand(23)
    ours = soft_cross_entropy(hidden, head, ids, probs, weights)
    (grad,) = torch.autograd.grad(3 * ours, hidden)
    reference = plain(hidden, head, ids, probs, weights)
    (wanted,) = torch.autograd.grad(3 * reference, hidden)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(grad, wanted)
