"""What drafted steps really brought: who gains goes on, and who loses pays."""

import pytest

from d2sd.engines.batches.experience import Experience


def test_drafting_is_tried_a_while_then_paused_and_losses_are_paid_for_first():
    known = Experience()
    assert [known.tries() for _ in range(12)] == [True] * 8 + [False] * 4
    known.drafted(requests=2, emitted=2, spent=0.1, rates=(100.0, 150.0))  # four plain steps lost
    assert known.behind == pytest.approx(4.0)
    assert not any(known.tries() for _ in range(1599))  # at a quarter of a percent
    assert [known.tries() for _ in range(10)].count(True) == 8


@pytest.mark.parametrize(("requests", "tried", "lost"), [(4, 8, 4.0), (16, 2, 16.0), (32, 1, 32.0)])
def test_a_step_of_many_requests_is_worth_as_many_of_few(requests, tried, lost):
    known = Experience(requests)
    assert [known.tries() for _ in range(12)].count(True) == tried
    known.drafted(requests, emitted=requests, spent=0.1, rates=(50.0 * requests, 1.0))
    assert (known.behind, known.given_up) == (pytest.approx(lost), lost > 16)
    assert not any(known.tries() for _ in range(1599))  # four steps at a quarter of a percent
    assert [known.tries() for _ in range(12)].count(True) == tried


def test_one_step_of_many_requests_corrects_what_is_foreseen_by_more():
    brought = []
    for requests in (4, 32):  # half of the tokens that were foreseen
        known = Experience(requests)
        rates = (10.0 * requests, 20.0 * requests)
        known.drafted(requests, emitted=requests, spent=0.1, rates=rates)
        brought.append(known.brought.value)
    assert brought[0] == pytest.approx((4 * 31 / 32 + 1) / (4 * 31 / 32 + 2))
    assert brought[1] == pytest.approx((4 * 31 / 32 + 8) / (4 * 31 / 32 + 16))


def test_drafting_is_given_up_until_its_losses_are_paid_for_and_gains_stand_against_them():
    known = Experience()
    for _ in range(5):
        known.drafted(requests=1, emitted=1, spent=0.1, rates=(50.0, 50.0))  # four steps each
    assert known.given_up
    for _ in range(int(known.behind / 0.0025) + 2):
        assert not known.tries() or known.behind <= 0.0
    assert not known.given_up
    for _ in range(50):
        known.drafted(requests=1, emitted=3, spent=0.02, rates=(50.0, 50.0))
    for _ in range(11):
        known.drafted(requests=1, emitted=1, spent=0.1, rates=(50.0, 50.0))
    assert (known.behind, known.given_up) == (pytest.approx(12.0), False)


def test_plain_steps_to_compare_with_come_ever_more_seldom():
    known, plain = Experience(), []
    for step in range(320):
        if known.wants_plain():
            plain.append(step)
            known.stepped(1.0)
        else:
            known.drafted(requests=1, emitted=2, spent=0.02, rates=(50.0, 100.0))
    assert plain == [0, 5, 14, 31, 64, 129, 194, 259]


def test_plain_steps_come_often_again_where_drafting_had_ended():
    known = Experience()
    gaps = []
    for pause in (0, 0, 0, 300):
        for _ in range(pause):
            known.tries()
        while not known.wants_plain():
            known.drafted(requests=1, emitted=2, spent=0.02, rates=(50.0, 100.0))
        gaps.append(known._since)
        known.stepped(1.0)
    assert gaps == [0, 4, 8, 4]


def test_a_plain_step_is_not_waited_for_where_all_passes_read_prompts():
    known = Experience()
    assert [known.wants_plain() for _ in range(40)] == [True] * 4 + [False] * 36
    known.stepped(1.0)
    for _ in range(4):
        assert not known.wants_plain()
        known.drafted(requests=1, emitted=2, spent=0.02, rates=(50.0, 100.0))
    assert known.wants_plain()


def test_one_slow_step_is_not_the_end_of_drafting():
    known = Experience()
    known.drafted(requests=1, emitted=1, spent=30.0, rates=(50.0, 50.0))
    assert (known.behind, known.given_up) == (7.0, False)
