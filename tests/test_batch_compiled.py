"""A batch's compiled drafts are the eager ones, for any number of requests."""

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from d2sd.drafters.passes import READ_ROWS
from d2sd.engines.batches import packages
from d2sd.engines.batches.batch_pass import EagerBatchPass, TargetEnds
from d2sd.engines.batches.compiled import CompiledBatchPass, compile_batch
from d2sd.engines.batches.packages import compiled_pass
from d2sd.engines.batches.passes import BatchedNetwork, NewRows, Wanted
from drafters import random_network

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]
SLOTS = 5


class Ends(TargetEnds):
    def __init__(self, ids):
        generator = torch.Generator().manual_seed(5)
        self.embedding = torch.randn(97, 32, generator=generator)
        self.head = torch.randn(97, 32, generator=generator)[ids]

    def embed(self, ids):
        return self.embedding[ids]

    def logits(self, hidden, draft_ids):
        return hidden @ self.head.T


@pytest.fixture(scope="module", params=[False, True], ids=["one block", "several"])
def both(request, tmp_path_factory):
    """The same network eagerly and compiled, and whether its sequences have several blocks."""
    network = random_network()
    network.draft_ids = torch.arange(3, 60)
    ends = Ends(network.draft_ids)
    folder = tmp_path_factory.mktemp("compiled")
    compile_batch(network, ends.head, SLOTS, request.param, folder)
    eager = EagerBatchPass(network, ends)
    run = CompiledBatchPass(folder, eager, SLOTS, request.param)
    return [BatchedNetwork(network, ends, (0, 1), one) for one in (eager, run)], request.param


def proposed(batched, lengths, rows, slots=SLOTS):
    """What it proposes for requests with so many tokens, which it reads anew."""
    generator = torch.Generator().manual_seed(1)
    wanted = []
    for number, length in enumerate(lengths):
        name = f"{number} of {length}"
        batched.forget(name)
        batched.read([NewRows(name, 0, torch.randn(length, 2, 32, generator=generator))])
        visible = [(7,), (7, 8), (7, 8, 9)][: max(rows - number, 1)]
        wanted.append(Wanted(name, visible, length, 0.0))
    return batched.propose(wanted, slots)


def ran(batched, monkeypatch):
    """How often its compiled drafts run from now on."""
    calls, draft = [], batched._pass._draft
    monkeypatch.setattr(batched._pass, "_draft", lambda *args: calls.append(1) or draft(*args))
    return calls


@pytest.mark.parametrize("lengths", [[9], [9, 4], [3, 30, 2, 17, 8], [READ_ROWS[-1] + 5, 2]])
def test_compiled_drafts_are_the_eager_ones(both, lengths, monkeypatch):
    (eager, compiled), several = both
    calls = ran(compiled, monkeypatch)
    for rows in (2, 3) if several else (1,):
        expected, found = (proposed(one, lengths, rows) for one in (eager, compiled))
        for name, proposal in expected.items():
            own = found[name]
            for mine, theirs in zip(own.probs, proposal.probs, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert len(calls) == (2 if several else 1)


def test_a_single_block_where_several_are_compiled_is_doubled(both, monkeypatch):
    (eager, compiled), several = both
    calls = ran(compiled, monkeypatch)
    expected, found = (proposed(one, [6], 1) for one in (eager, compiled))
    (mine,), (theirs,) = found.values(), expected.values()
    torch.testing.assert_close(mine.probs[0], theirs.probs[0], rtol=1e-4, atol=1e-6)
    assert len(calls) == 1, several


def test_what_was_not_compiled_runs_eagerly(both, monkeypatch):
    (eager, compiled), several = both
    calls = ran(compiled, monkeypatch)
    others = [([1], 2 if several else 1, SLOTS), ([6, 7], 2, 4)]
    for lengths, rows, slots in others if several else [*others, ([6], 3, SLOTS)]:
        expected, found = (proposed(one, lengths, rows, slots) for one in (eager, compiled))
        for name, proposal in expected.items():
            torch.testing.assert_close(found[name].probs[0], proposal.probs[0])
    assert calls == []


def test_drafters_are_compiled_once_and_eager_where_torch_cannot(monkeypatch, tmp_path, caplog):
    network = random_network()
    network.draft_ids = torch.arange(3, 60)
    ends, made = Ends(network.draft_ids), []
    monkeypatch.setattr(packages, "package_folder", lambda *a, **k: tmp_path)

    def fails(*args):
        made.append(args)
        raise InvalidCxxCompiler

    monkeypatch.setattr(packages, "compile_batch", fails)
    load = (network, ends, ends.head, SLOTS, False, lambda make: make())
    assert isinstance(compiled_pass(*load), EagerBatchPass)
    assert "it runs eagerly" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(packages, "package_folder", lambda *a, **k: tmp_path)
    assert isinstance(compiled_pass(*load), CompiledBatchPass)
    monkeypatch.setattr(packages, "compile_batch", fails)
    assert isinstance(compiled_pass(*load), CompiledBatchPass)
    assert len(made) == 1
