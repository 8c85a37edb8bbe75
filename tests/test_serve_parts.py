"""The server's parts by themselves: queue, penalties, logged rows, kept prefixes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch

from conftest import tiny_model
from d2sd.drafters.none import NoDrafter
from d2sd.generate import Request, generate
from d2sd.sampling import Sampling
from d2sd.serve.prefixes import PrefixCache
from d2sd.serve.processors import CountPenalties, RepetitionPenalty, RowLog
from d2sd.serve.queueing import ClosedError, FairQueue, FullError, Pace
from d2sd.target.hf import HFTarget


@dataclass(frozen=True)
class Asked:
    client: str
    name: str


def queue_of(*jobs: Asked, room: int = 10) -> FairQueue[Asked]:
    queue: FairQueue[Asked] = FairQueue(room)
    for job in jobs:
        queue.put(job)
    return queue


def test_clients_take_turns() -> None:
    queue = queue_of(*(Asked("a", f"a{n}") for n in range(3)), Asked("b", "b0"), Asked("c", "c0"))
    order = []
    for _ in range(5):
        job = queue.get()
        assert job is not None
        order.append(job.name)
    assert order == ["a0", "b0", "c0", "a1", "a2"]


def test_a_full_queue_takes_all_of_a_request_or_nothing() -> None:
    queue = queue_of(Asked("a", "1"), room=2)
    with pytest.raises(FullError):
        queue.put(Asked("b", "2"), Asked("b", "3"))
    assert len(queue) == 1
    queue.put(Asked("b", "2"))
    assert len(queue) == 2


def test_a_closed_queue_gives_out_what_waits_and_takes_nothing() -> None:
    queue = queue_of(Asked("a", "1"))
    queue.close()
    with pytest.raises(ClosedError):
        queue.put(Asked("a", "2"))
    assert queue.get() == Asked("a", "1")
    assert queue.get() is None


def test_a_waiting_worker_is_woken() -> None:
    queue = queue_of()
    got: list[Asked | None] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    queue.put(Asked("a", "1"))
    thread.join(5)
    assert got == [Asked("a", "1")]


def test_whoever_must_come_back_is_told_when() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took(3.0)
    assert pace.wait_for(4) == 12
    assert pace.wait_for(0) == 1


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, -4.0]])
    ids = torch.tensor([[3, 3, 1, 1, 2]])  # two of the prompt, three said
    counted = CountPenalties(2, presence=0.5, frequency=0.25)(ids, logits.clone())
    assert counted.tolist() == [[1.0, 2.0 - 0.5 - 0.5, 3.0 - 0.5 - 0.25, -4.0]]
    repeated = RepetitionPenalty(2.0)(ids, logits.clone())
    assert repeated.tolist() == [[1.0, 1.0, 1.5, -8.0]]


def test_rows_are_logged_in_the_order_of_the_tokens() -> None:
    log = RowLog(2)
    rows = [torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[7.0, 0.0, 0.0]])]
    for row in rows:
        assert log(torch.tensor([[0]]), row) is row
    first, second = log.taken([2, 1])
    wanted = rows[0][0].log_softmax(-1)
    assert first.chosen == pytest.approx(float(wanted[2]))
    assert [token for token, _ in first.alternatives] == [2, 1]
    assert second.chosen == pytest.approx(float(rows[1][0].log_softmax(-1)[1]))
    assert log.taken([]) == []


def said(target: HFTarget, prompt: tuple[int, ...]) -> tuple[int, ...]:
    class Digits:
        def decode(self, ids, **_):
            return " ".join(map(str, ids))

    request = Request(prompt, Sampling(), max_new_tokens=6)
    return generate(target, NoDrafter(), request, Digits()).token_ids


def test_a_conversation_that_goes_on_finds_its_rows_again() -> None:
    model = tiny_model("Llama")
    target, fresh = HFTarget(model), HFTarget(model)
    cache = PrefixCache(target, 10**9)
    one, two = tuple(range(1, 40)), tuple(range(50, 90))
    assert cache.prepare(one) == 0
    answer = said(target, one)
    assert cache.prepare(two) == 0  # overwrites the rows of the first one, which are kept
    said(target, two)
    longer = (*one, *answer, 7, 8)
    assert cache.prepare(longer) >= len(one) + len(answer) - 1
    assert said(target, longer) == said(fresh, longer)
    assert cache.prepare((*two, 3)) >= len(two) - 1
    assert said(target, (*two, 3)) == said(fresh, (*two, 3))


def test_kept_rows_stay_within_their_bound() -> None:
    target = HFTarget(tiny_model("Llama"))
    cache = PrefixCache(target, 0)
    for start in range(3):
        prompt = tuple(range(1 + 30 * start, 31 + 30 * start))
        assert cache.prepare(prompt) == 0
        said(target, prompt)
        assert cache.bytes == 0
