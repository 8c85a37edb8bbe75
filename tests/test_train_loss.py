"""Losses of slots from one chunked pass, against the plain formulas over all logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.train import loss as loss_module
from d2sd.train.loss import TAIL_FLOOR, SlotLabels, log_partition, slot_losses

NAMES = ("cross_entropy", "forward_kl", "total_variation", "log_right")


def case(slots=23, vocab=11, kept=3, seed=0, sharp=1.0):
    """Hidden states, a head, and the best `kept` tokens of a random target."""
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(slots, 6, generator=rng)
    head = torch.randn(vocab, 6, generator=rng)
    target = (sharp * torch.randn(slots, vocab, generator=rng)).softmax(-1)
    best = target.topk(kept)
    right = torch.randint(-1, vocab, (slots,), generator=rng)
    return hidden.requires_grad_(), head, target, SlotLabels(best.indices, best.values, right)


def plain(hidden, head, labels):
    """The same losses slot by slot and token by token, in float64."""
    values = {name: [] for name in NAMES}
    for state, ids, probs, right in zip(
        hidden.double(), labels.ids.tolist(), labels.probs.double(), labels.right, strict=True
    ):
        log_q = (head.double() @ state).log_softmax(-1)
        tail = 1 - probs.sum()
        drafted_tail = sum(log_q[v].exp() for v in range(len(head)) if v not in ids)
        pairs = list(zip(probs, ids, strict=True))
        values["cross_entropy"].append(-sum(p * log_q[v] for p, v in pairs) / probs.sum())
        values["forward_kl"].append(
            sum(p * (p.log() - log_q[v]) for p, v in pairs)
            + tail * (tail.log() - (drafted_tail + TAIL_FLOOR).log())
        )
        differences = [(p - log_q[v].exp()).abs() for p, v in pairs]
        values["total_variation"].append((sum(differences) + (tail - drafted_tail).abs()) / 2)
        values["log_right"].append(log_q[right] if right >= 0 else 0 * log_q[0])
    return {name: torch.stack(value) for name, value in values.items()}


@pytest.mark.parametrize("chunk", [4, 7, 64])
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_and_its_gradient_equal_the_plain_formula(name, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    hidden, head, _, labels = case()
    upstream = torch.randn(len(hidden), generator=torch.Generator().manual_seed(5))
    ours = getattr(slot_losses(hidden, head, labels), name)
    (grad,) = torch.autograd.grad(ours, hidden, upstream)
    reference = plain(hidden, head, labels)[name]
    (wanted,) = torch.autograd.grad(reference, hidden, upstream.double())
    assert grad.abs().max() > 0.1
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-4)


def test_upstream_gradients_of_all_losses_are_combined_per_slot():
    hidden, head, _, labels = case()
    weights = torch.randn(len(NAMES), len(hidden), generator=torch.Generator().manual_seed(5))
    ours, reference = slot_losses(hidden, head, labels), plain(hidden, head, labels)
    total = sum(w @ getattr(ours, name) for w, name in zip(weights, NAMES, strict=True))
    wanted = sum(w.double() @ reference[n] for w, n in zip(weights, NAMES, strict=True))
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (total, wanted)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_the_head_is_read_once_forwards_and_never_whole(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 4)
    monkeypatch.setattr(loss_module, "ROWS", 2)
    hidden, head, _, labels = case(slots=9)  # the last chunk is filled up
    seen = []

    def partition(logits):
        seen.append(tuple(logits.shape))
        return log_partition(logits)

    losses = slot_losses(hidden, head, labels, partition)
    (losses.forward_kl + losses.log_right).sum().backward()
    losses = slot_losses(hidden, head, labels, partition)
    losses.cross_entropy.sum().backward()
    assert seen == [(4, 11), (4, 11), (2, 11)] * 2


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_drafter_equal_to_the_target_loses_least(name):
    # the head is the identity, so that a hidden state is the logits
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(1))
    best = logits.softmax(-1).topk(9 if name == "cross_entropy" else 4)
    labels = SlotLabels(best.indices, best.values, torch.zeros(40, dtype=torch.long))
    equal = getattr(slot_losses(logits, torch.eye(9), labels), name)
    other = getattr(slot_losses(logits + torch.randn(40, 9), torch.eye(9), labels), name)
    assert (equal < other + TAIL_FLOOR * (name == "forward_kl")).all()
    if name != "cross_entropy":
        torch.testing.assert_close(equal, torch.zeros(40), atol=TAIL_FLOOR, rtol=0)
        assert (equal > -TAIL_FLOOR).all()


@given(st.integers(0, 99), st.integers(1, 10), st.floats(0.1, 6))
def test_taking_the_tail_as_one_token_never_makes_a_divergence_larger(seed, kept, sharp):
    hidden, head, target, labels = case(kept=kept, seed=seed, sharp=sharp)
    losses = slot_losses(hidden, head, labels)
    log_q = (hidden @ head.T).log_softmax(-1)
    whole_kl = (torch.xlogy(target, target) - target * log_q).sum(-1)
    whole_variation = (target - log_q.exp()).abs().sum(-1) / 2
    assert (losses.forward_kl <= whole_kl + 1e-4).all()
    assert (losses.total_variation <= whole_variation + 1e-4).all()
    assert (losses.forward_kl > -TAIL_FLOOR).all()
    assert (losses.total_variation >= 0).all()


def test_with_all_tokens_kept_there_is_no_tail_and_the_divergences_are_exact():
    hidden, head, target, labels = case(kept=11)
    losses = slot_losses(hidden, head, labels)
    log_q = (hidden @ head.T).log_softmax(-1)
    whole_kl = (target * (target.log() - log_q)).sum(-1)
    torch.testing.assert_close(losses.forward_kl, whole_kl, atol=1e-4, rtol=1e-4)
    whole_variation = (target - log_q.exp()).abs().sum(-1) / 2
    torch.testing.assert_close(losses.total_variation, whole_variation, atol=1e-5, rtol=1e-5)


def test_cross_entropy_empties_the_tail_and_forward_kl_fills_it_as_the_target_does():
    target = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    labels = SlotLabels(torch.tensor([[0, 1]]), target[None, :2], torch.tensor([0]))
    tails = {}
    for name in ("cross_entropy", "forward_kl"):
        logits = torch.zeros(1, 5, requires_grad=True)
        for _ in range(500):
            loss = getattr(slot_losses(logits, torch.eye(5), labels), name)
            (grad,) = torch.autograd.grad(loss, logits)
            logits = (logits - 2 * grad).detach().requires_grad_()
        tails[name] = logits.softmax(-1)[0, 2:].sum().item()
    assert tails["cross_entropy"] < 0.01
    assert tails["forward_kl"] == pytest.approx(0.3, abs=TAIL_FLOOR)


def test_an_emitted_token_outside_the_draft_vocabulary_weighs_nothing():
    hidden, head, _, labels = case()
    missing = labels.right < 0
    assert 0 < missing.sum() < len(missing)
    losses = slot_losses(hidden, head, labels)
    assert losses.proposable.tolist() == (~missing).tolist()
    assert (losses.log_right[missing] == 0).all()
    (grad,) = torch.autograd.grad(losses.log_right.sum(), hidden)
    assert (grad[missing] == 0).all()
    assert (grad[~missing] != 0).any(-1).all()


def test_probabilities_that_sum_to_more_than_one_in_few_bits_leave_no_tail():
    probs = torch.tensor([[0.9, 0.11]]).bfloat16()
    assert probs.sum() > 1
    labels = SlotLabels(torch.tensor([[0, 1]]), probs, torch.tensor([0]))
    exact = (probs.float() / probs.float().sum()).log()
    logits = torch.cat([exact, torch.full((1, 3), -60.0)], -1)
    losses = slot_losses(logits, torch.eye(5), labels)
    assert losses.total_variation.item() == pytest.approx(0, abs=1e-6)
    assert losses.forward_kl.item() == pytest.approx(0, abs=1e-6)


def test_a_sure_drafter_gives_finite_losses_and_gradients_in_bfloat16():
    head = torch.eye(6).bfloat16()
    logits = torch.tensor([[90.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 90.0]]).bfloat16()
    logits.requires_grad_()
    labels = SlotLabels(
        torch.tensor([[0, 1], [0, 1]]),
        torch.tensor([[0.6, 0.2], [1.0, 0.0]]).bfloat16(),
        torch.tensor([1, 1]),
    )
    losses = slot_losses(logits, head, labels)
    for name in NAMES:
        loss = getattr(losses, name)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        (grad,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert grad.dtype == torch.bfloat16
        assert grad.abs().max() < 20
    assert losses.log_right.tolist() == pytest.approx([-90, -90])


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_gradients_are_as_good_as_bfloat16_logits_allow(name):
    hidden, head, _, _ = case(slots=64, vocab=300, kept=8)
    _, _, _, labels = case(slots=64, vocab=300, kept=8, sharp=3.0)
    low, low_head = hidden.detach().bfloat16().requires_grad_(), head.bfloat16()
    ours = getattr(slot_losses(low, low_head, labels), name).sum()
    reference = plain(low.double(), low_head, labels)[name].sum()
    (grad,) = torch.autograd.grad(ours, low)
    (wanted,) = torch.autograd.grad(reference, low)
    assert ((grad - wanted).norm() / wanted.norm()).item() < 0.02


def test_nothing_is_kept_for_a_backward_pass_nobody_asks_for():
    hidden, head, _, labels = case()
    with torch.no_grad():
        quiet = slot_losses(hidden, head, labels)
    assert not quiet.forward_kl.requires_grad
    torch.testing.assert_close(quiet.forward_kl, slot_losses(hidden, head, labels).forward_kl)
