"""The proving ground that comes with d2sd: real weights, long drafts, the same tokens."""

from pathlib import Path

import pytest

from d2sd.generate import Request, generate
from d2sd.models.resolve import resolve, shipped_drafters
from d2sd.session import ModelChoice, open_session

POLICIES = ("block", "dual", "best-first:budget=32", "merged:budget=32")
QUESTIONS = (
    "Tom has 3 boxes with 12 pens each. He gives 7 pens to Ann. How many pens are left?",
    "A train travels 60 miles in one hour. How far does it travel in four hours?",
)


@pytest.fixture(scope="module")
def session():
    return open_session(ModelChoice("proving-ground", dtype="float32"), ["dual"])


def answers(session, policy):
    found = []
    for question in QUESTIONS:
        prompt = session.chat_prompt([{"role": "user", "content": question}])
        request = Request(prompt, max_new_tokens=96, stop_tokens=session.stop_tokens)
        found.append(generate(session.target, session.drafter(policy), request, session.tokenizer))
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_says_what_plain_decoding_says(session, policy):
    plain = [answer.token_ids for answer in answers(session, "none")]
    assert [answer.token_ids for answer in answers(session, policy)] == plain


def test_drafts_are_long_and_a_second_pass_lengthens_them(session):
    steps = {
        policy: sum(answer.steps for answer in answers(session, policy)) for policy in POLICIES
    }
    tokens = sum(answer.new_tokens for answer in answers(session, "none"))
    assert tokens / steps["block"] > 2
    assert steps["dual"] < steps["block"]
    assert steps["merged:budget=32"] < steps["block"]


def test_all_of_it_is_within_20_megabytes():
    first, _ = shipped_drafters("proving-ground")
    files = [file for file in Path(first).parent.rglob("*") if file.is_file()]
    assert Path(resolve("proving-ground")).is_dir()
    assert sum(file.stat().st_size for file in files) <= 20e6
