"""The masked-diffusion drafter that comes with d2sd."""

import json
from itertools import islice

import pytest

from d2sd.decode import decode
from d2sd.drafters.masked import is_masked, read_draft_ids
from d2sd.drafters.none import NoDrafter
from d2sd.models.resolve import shipped_masked
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session

FOLDER = shipped_masked("smollm2-135m")


def test_it_lies_in_the_package_and_is_small():
    assert is_masked(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size < 30e6
    assert len(read_draft_ids(FOLDER)) == 8192
    assert json.loads((FOLDER / "config.json").read_text())["block_diffusion"]["shared_embedding"]


def test_its_card_says_what_it_was_trained_on():
    last = json.loads((FOLDER / "training.jsonl").read_text().splitlines()[-1])
    card = (FOLDER / "README.md").read_text()
    assert f"{last['slots'] / 1e6:.2f} million masked\nslots" in card
    assert f"{last['held_out_accepted']:.2f} leading tokens" in card


@pytest.mark.usefixtures("smollm2")
def test_it_drafts_without_further_arguments():
    session = open_session(
        ModelChoice("smollm2-135m", dtype="float32", compiled=False), ["specdiff"]
    )
    prompt = session.chat_prompt([{"role": "user", "content": "What is 17 times 12?"}])
    emitted = []
    for drafter in (session.drafter("specdiff"), NoDrafter()):
        steps = list(islice(decode(session.target, drafter, prompt, Sampling()), 24))
        emitted.append([token for step in steps for token in step.emitted])
    assert len(emitted[1]) == 24
    assert emitted[0][:24] == emitted[1]
    assert len(emitted[0]) > 24  # some of its tokens were right
