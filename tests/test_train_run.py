"""Training as a whole on a tiny target: resume, export, and drafters that decode."""

import json

import pytest
import torch

from d2sd.decode import decode
from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.proposer import NetworkProposer
from d2sd.sampling import Sampling
from d2sd.target.hf import HFTarget
from d2sd.train.loop import Schedule
from d2sd.train.recipes import Recipe, find_recipe
from d2sd.train.responses import read_responses
from d2sd.train.run import DrafterTraining

RECIPE = Recipe(
    taps=(0, 2),
    mask_token_id=96,
    block_size=4,
    layers=2,
    intermediate_size=48,
    draft_vocab_size=90,
    first=Schedule(steps=6, warmup=1),
    second=Schedule(steps=4, warmup=1),
    sequences_per_batch=4,
    anchors_per_sequence=6,
    validation=4,
    evaluate_every=3,
)


def same(function, **options):
    return function


def quiet(*_):
    return None


@pytest.fixture(scope="module")
def responses(tiny_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("responses") / "responses.jsonl"
    rng = torch.Generator().manual_seed(3)
    rows = []
    for number in range(24):
        prompt = torch.randint(90, (1, 3 + number % 4), generator=rng)
        with torch.inference_mode():
            whole = tiny_llama.generate(prompt, max_new_tokens=9, do_sample=False)[0].tolist()
        count = prompt.shape[1]
        rows.append({"prompt_ids": whole[:count], "response_ids": whole[count:], "temperature": 0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training(tiny_llama, responses, folder, recipe=RECIPE):
    folder.mkdir(exist_ok=True)
    return DrafterTraining(recipe, tiny_llama, responses, folder, compiler=same)


@pytest.fixture(scope="module")
def trained(tiny_llama, responses, tmp_path_factory):
    """Folder of a finished run: its work files, and the drafters in `out`."""
    folder = tmp_path_factory.mktemp("run")
    run = training(tiny_llama, responses, folder)
    store = run.store(quiet)
    first = run.train_first(store, quiet)
    second = run.train_second(store, first, quiet)
    run.export(store, {"first": first, "second": second}, folder / "out")
    return folder


def test_a_killed_run_goes_on_to_the_same_weights(tiny_llama, responses, trained, tmp_path):
    class KilledError(Exception):
        pass

    def killer(stage, report):
        if report.step == 5:  # between the checkpoint at step 3 and the end
            raise KilledError

    broken = training(tiny_llama, responses, tmp_path / "run")
    store = broken.store(quiet)
    with pytest.raises(KilledError):
        broken.train_first(store, killer)
    heard = []
    again = training(tiny_llama, responses, tmp_path / "run")
    network = again.train_first(again.store(quiet), lambda stage, report: heard.append(report.step))
    assert heard == [4, 5, 6]
    undisturbed = training(tiny_llama, responses, trained)
    wanted = undisturbed.train_first(undisturbed.store(quiet), quiet)
    for ours, theirs in zip(network.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_curve_tells_what_was_seen_and_what_it_gave(trained):
    lines = [json.loads(line) for line in (trained / "curve.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("first", 3), ("first", 6), ("second", 3), ("second", 4),
    ]  # fmt: skip
    assert all(line["block"] >= 1 for line in lines)
    assert all(line["dual"] >= line["block"] for line in lines if line["stage"] == "second")


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
    store = run.store(quiet)
    network = run.train_first(store, quiet)  # finished already: loads the last checkpoint
    shipped = load_network(trained / "out" / "first")
    features = store.read([0])[0].features.float()
    raw = features * store.scale
    ours = network.fc(features.flatten(1))
    torch.testing.assert_close(shipped.fc(raw.flatten(1)), ours, rtol=0.05, atol=0.05)


def test_learning_lowers_the_loss(tiny_llama, responses, tmp_path):
    recipe = RECIPE.with_steps(90, None)
    losses = []
    run = training(tiny_llama, responses, tmp_path / "run", recipe)
    run.train_first(run.store(quiet), lambda stage, report: losses.append(report.loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("{", "line 2: not a response"), ('{"prompt_ids": [1]}', "line 2: not a response")],
)
def test_a_broken_line_is_named(line, complaint, tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text('{"prompt_ids": [1], "response_ids": [2, 3]}\n' + line + "\n")
    with pytest.raises(ValueError, match=complaint):
        read_responses(path)


def test_an_unknown_recipe_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="no recipe 'x'; choose one of smollm2-135m"):
        find_recipe("x")
