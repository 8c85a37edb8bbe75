import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.drafters.boundary import (
    all_accepted,
    expected_boundary,
    likely_boundaries,
    rejection_posterior,
)
from d2sd.drafters.policies import build_drafter, parse_policy
from d2sd.tree import Chain
from fakes import MarkovProposer, ScriptedProposer, context_of, random_table, spread

WORKED_EXAMPLE = [0.95, 0.84, 0.62, 0.70, 0.42]

confidences = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def test_the_papers_worked_example():
    posterior = rejection_posterior(torch.tensor(WORKED_EXAMPLE))
    assert [round(chance, 3) for chance in posterior.tolist()] == [
        0.050, 0.152, 0.303, 0.148, 0.201,
    ]  # fmt: skip
    assert likely_boundaries(posterior, 4) == [2, 4, 1, 3]


@given(confidences)
def test_posterior_and_the_all_accepted_rest_sum_to_one(confidence):
    posterior = rejection_posterior(confidence)
    assert (posterior >= 0).all()
    assert float(posterior.sum() + all_accepted(confidence)) == pytest.approx(1)


@given(confidences)
def test_posterior_is_the_law_of_independent_acceptances(confidence):
    chances = [0.0] * (len(confidence) + 1)
    for accepted in itertools.product([True, False], repeat=len(confidence)):
        chance = 1.0
        for was_accepted, sure in zip(accepted, confidence.tolist(), strict=True):
            chance *= sure if was_accepted else 1 - sure
        chances[(*accepted, False).index(False)] += chance
    assert rejection_posterior(confidence).tolist() == pytest.approx(chances[:-1])
    assert float(all_accepted(confidence)) == pytest.approx(chances[-1])


def test_shallower_boundaries_win_ties():
    assert likely_boundaries(torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1]), 4) == [1, 3, 0, 2]


def test_no_more_boundaries_than_there_are():
    assert likely_boundaries(torch.tensor([0.3, 0.5]), 4) == [1, 0]


def test_ties_are_kept_in_order_in_long_blocks_too():
    assert likely_boundaries(torch.full((500,), 0.002), 400) == list(range(400))


@given(confidences)
def test_the_expected_boundary_is_the_likeliest_of_all(confidence):
    chances = [*rejection_posterior(confidence).tolist(), float(all_accepted(confidence))]
    assert chances[expected_boundary(confidence.tolist())] == pytest.approx(max(chances))


@pytest.mark.parametrize(
    ("confidence", "expected"), [([0.9, 0.5, 0.9], 1), ([0.5, 1.0], 0), ([0.99, 0.99], 2), ([], 0)]
)
def test_a_sure_chain_is_expected_to_hold(confidence, expected):
    assert expected_boundary(confidence) == expected


@pytest.mark.parametrize("policy", ["block", "best-first", "dual", "merged", "three-level"])
def test_trees_tell_what_the_first_pass_expected(policy):
    likely = [{3: 0.9, 4: 0.1}, {5: 0.4, 6: 0.3, 7: 0.3}, {5: 1.0}]
    table = torch.stack([spread(probs, 8) for probs in likely])
    first = ScriptedProposer(4, {(): table})
    drafter = build_drafter(parse_policy(policy), first, MarkovProposer(random_table(8), 4))
    tree = drafter.draft(context_of([1, 2]))
    assert tree.chain == Chain((3, 5, 5), 1)
    assert tree.shallow(1).chain == tree.first(2).chain == tree.chain
