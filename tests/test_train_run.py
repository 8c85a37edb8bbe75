"""Training as a whole on a tiny target: stages, resume, export, and drafters that decode."""

import json
from dataclasses import replace

import pytest
import torch

from answers import random_responses
from d2sd.decode import decode
from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.proposer import NetworkProposer
from d2sd.sampling import Sampling
from d2sd.target.hf import HFTarget
from d2sd.train.features import OnlineFeatures
from d2sd.train.material import Material, draft_vocabulary
from d2sd.train.recipes import Recipe
from d2sd.train.responses import Response
from d2sd.train.run import Company, DrafterTraining
from d2sd.train.schedule import Schedule
from d2sd.train.settings import changed

RECIPE = Recipe(
    taps=(0, 2),
    mask_token_id=96,
    block_size=4,
    layers=2,
    intermediate_size=48,
    draft_vocab_size=90,
    first=Schedule(steps=6, warmup=1),
    second=Schedule(steps=4, warmup=1),
    one=Schedule(steps=4, warmup=1),
    sequences_per_batch=4,
    anchors_per_sequence=6,
    validation=4,
    evaluate_every=3,
    checkpoint_every=3,
)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def responses(tiny_llama):
    """The target's own greedy answers."""
    found = []
    rng = torch.Generator().manual_seed(3)
    for number in range(24):
        prompt = torch.randint(90, (1, 3 + number % 4), generator=rng)
        with torch.inference_mode():
            whole = tiny_llama.generate(prompt, max_new_tokens=9, do_sample=False)[0].tolist()
        count = prompt.shape[1]
        found.append(Response(tuple(whole[:count]), tuple(whole[count:]), 0.0))
    return found


def training(tiny_llama, responses, folder, recipe=RECIPE, **listeners):
    source = OnlineFeatures(tiny_llama, responses, recipe.taps, draft_vocabulary(recipe, responses))
    material = Material(recipe, tiny_llama, responses, source)
    return DrafterTraining(material, folder, Company(**listeners))


def killer(step, stage="first"):
    """Listens, and ends the run at a step."""

    def hear(moment):
        if (moment.stage, moment.report.step) == (stage, step):
            raise KilledError

    return hear


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [line for line in lines if "stage" in line]


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def trained(tiny_llama, responses, tmp_path_factory):
    """Folder of a finished run: its work files, and the drafters in `out`."""
    folder = tmp_path_factory.mktemp("run")
    run = training(tiny_llama, responses, folder)
    run.export(run.train("both"), folder / "out")
    return folder


@pytest.mark.parametrize(("stage", "step"), [("first", 2), ("first", 5), ("second", 2)])
def test_a_killed_run_goes_on_to_the_same_drafters(
    tiny_llama, responses, trained, tmp_path, stage, step
):
    with pytest.raises(KilledError):
        training(tiny_llama, responses, tmp_path, hear=killer(step, stage)).train("both")
    heard = []
    again = training(tiny_llama, responses, tmp_path, hear=heard.append)
    again.export(again.train("both"), tmp_path / "out")
    saved = {("first", 2): 0, ("first", 5): 3, ("second", 2): 0}[stage, step]
    assert (heard[0].stage, heard[0].report.step) == (stage, saved + 1)
    for name in ("first", "second"):
        assert same(load_network(tmp_path / "out" / name), load_network(trained / "out" / name))
    for ours, theirs in zip(log_of(tmp_path), log_of(trained), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_log_tells_what_was_seen_and_what_it_gave(trained):
    lines = log_of(trained)
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("first", 3), ("first", 6), ("second", 3), ("second", 4),
    ]  # fmt: skip
    assert all(line["block"] >= 1 for line in lines)
    assert all(line["dual"] >= line["block"] for line in lines if line["stage"] == "second")
    assert "NaN" not in (trained / "training.jsonl").read_text()  # it isn't JSON
    assert lines[0].keys() >= {"positions", "tokens", "seconds", "loss", "rate", "per_slot"}
    start = json.loads((trained / "out" / "training.jsonl").read_text().splitlines()[0])
    assert start["started"].keys() >= {"command", "commit", "versions", "seed", "device"}


def test_the_recipe_lies_beside_the_drafters(trained):
    values = json.loads((trained / "out" / "recipe.json").read_text())
    assert values["first"]["steps"] == 6
    assert values["taps"] == [0, 2]
    assert values["responses"]["count"] == 24


def test_trained_drafters_decode_losslessly_with_raw_features(tiny_llama, trained):
    first, second = (load_network(trained / "out" / name).double() for name in ("first", "second"))
    assert len(first.config.temperatures_for(0.0)) == RECIPE.block_size - 1
    target = HFTarget(tiny_llama, taps=first.config.taps)
    pair = [NetworkProposer(n, target.embed, target.head, target.taps) for n in (first, second)]
    prompt = [5, 17, 3]
    tokens = []
    for step in decode(target, DualDrafter(*pair, branches=2), prompt, Sampling()):
        tokens += step.emitted
        if len(tokens) >= 20:
            break
    with torch.inference_mode():
        plain = tiny_llama.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    assert tokens[:20] == plain[0, 3:].tolist()


def test_export_folds_the_feature_scale_into_the_weights(tiny_llama, responses, trained):
    run = training(tiny_llama, responses, trained)
    network = run.train("first")["first"]  # finished already: loads the best weights
    shipped = load_network(trained / "out" / "first")
    source = run.material.source
    features = source.read([0])[0].features.float()
    raw = features * source.scale
    ours = network.fc(features.flatten(1))
    torch.testing.assert_close(shipped.fc(raw.flatten(1)), ours, rtol=0.05, atol=0.05)
    back = run.material.load(trained / "out" / "first")
    torch.testing.assert_close(back.fc(features.flatten(1)), ours, rtol=0.05, atol=0.05)


def test_learning_lowers_the_loss(tiny_llama, responses, tmp_path):
    losses = []
    run = training(
        tiny_llama,
        responses,
        tmp_path,
        changed(RECIPE, {"first.steps": 90, "evaluate_every": 90}),
        hear=lambda moment: losses.append(moment.report.loss),
    )
    run.train("first")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_one_network_for_both_passes_is_measured_with_both(tiny_llama, responses, tmp_path):
    run = training(tiny_llama, responses, tmp_path)
    networks = run.train("one")
    run.export(networks, tmp_path / "out")
    assert list(networks) == ["one"]
    assert all(line["dual"] >= line["block"] for line in log_of(tmp_path))
    assert load_network(tmp_path / "out" / "one").config.block_size == 4


def test_a_second_drafter_wants_a_first_one(tiny_llama, responses, trained, tmp_path):
    run = training(tiny_llama, responses, tmp_path)
    with pytest.raises(ValueError, match="give one with --first FOLDER"):
        run.train("second")
    first = run.material.load(trained / "out" / "first")
    run.train("second", first)
    assert {line["stage"] for line in log_of(tmp_path)} == {"second"}


def test_training_begins_at_the_drafter_it_is_given(tiny_llama, responses, trained, tmp_path):
    still = changed(RECIPE, {"first.matrix_rate": 0, "first.vector_rate": 0})
    run = training(tiny_llama, responses, tmp_path, still)
    start = run.material.load(trained / "out" / "second")
    assert same(run.train("first", start=start)["first"], start)
    small = Material(replace(RECIPE, layers=1), tiny_llama, responses, run.material.source)
    with pytest.raises(ValueError, match="2 layers of width 48 is no start for one of 1 of 48"):
        small.copy_of(start)


def test_a_drafter_that_reads_other_layers_is_refused(tiny_llama, responses, trained, tmp_path):
    run = training(tiny_llama, responses, tmp_path, replace(RECIPE, block_size=5))
    with pytest.raises(ValueError, match="has block_size 4, the recipe has 5"):
        run.material.load(trained / "out" / "first")


def test_the_best_weights_are_kept_not_the_last(tiny_llama, responses, tmp_path):
    """A rate that ruins the network: what was measured before is exported."""
    recipe = changed(RECIPE, {"first.steps": 30, "evaluate_every": 1, "first.matrix_rate": 0.3})
    run = training(tiny_llama, responses, tmp_path, recipe)
    kept = run.train("first")["first"]
    lines = log_of(tmp_path)
    best = max(lines, key=lambda line: line["block"])
    assert best["block"] > lines[-1]["block"]
    assert run.material.evaluator.acceptance(kept.bfloat16()).block == best["block"]


def test_another_recipe_can_not_go_on(tiny_llama, responses, trained):
    with pytest.raises(ValueError, match="anchors_per_sequence was 6 and is now 7"):
        training(tiny_llama, responses, trained, replace(RECIPE, anchors_per_sequence=7))
    with pytest.raises(ValueError, match=r"responses\.count was 24 and is now 23"):
        training(tiny_llama, responses[1:], trained)


def test_a_training_can_be_made_longer_but_not_shorter_than_it_is(tiny_llama, responses, tmp_path):
    with pytest.raises(KilledError):
        training(tiny_llama, responses, tmp_path, hear=killer(4)).train("first")
    longer = changed(RECIPE, {"first.steps": 9})
    training(tiny_llama, responses, tmp_path, longer).train("first")
    assert [line["step"] for line in log_of(tmp_path)] == [3, 6, 9]
    with pytest.raises(ValueError, match="has made 9 steps already, more than the 6"):
        training(tiny_llama, responses, tmp_path).train("first")


def test_without_held_out_answers_the_last_weights_are_kept(tiny_llama, tmp_path):
    sampled = [response for response in random_responses(24) if response.temperature]
    told = []
    run = training(tiny_llama, sampled, tmp_path, tell=told.append)
    networks = run.train("first")
    assert [line.split(",")[0] for line in told] == ["no held-out response is greedy"]
    assert log_of(tmp_path)[-1].keys() >= {"loss"}
    assert networks["first"].fc.weight.isfinite().all()


def test_the_average_is_what_is_measured_and_exported(tiny_llama, responses, tmp_path):
    run = training(tiny_llama, responses, tmp_path, replace(RECIPE, ema=0.9))
    averaged = run.train("first")["first"]
    plain = training(tiny_llama, responses, tmp_path / "plain").train("first")["first"]
    assert not same(averaged, plain)
    torch.testing.assert_close(averaged.fc.weight, plain.fc.weight, rtol=0, atol=0.05)
