"""Cards: every figure from a file, nothing invented, the same each time, whole or not at all."""

import json
import re
from dataclasses import asdict

import pytest
import yaml

from d2sd.bench.acceptance import groups
from d2sd.bench.replay import JudgedRow, Replayed, ReplayedStep
from d2sd.card import compose as module
from d2sd.card.compose import card
from d2sd.card.findings import read_evaluation
from d2sd.card.page import Page
from d2sd.card.subject import Wording, read_subject
from d2sd.cli import run
from d2sd.train.responses import Response
from folders import save_drafter

START = {"commit": "c0ffee", "seed": 7, "versions": {"torch": "2.13.0"}, "command": ["d2sd", "x"]}
RECIPE = {
    "block_size": 5,
    "max_length": 512,
    "validation": 48,
    "responses": {"count": 4224, "sha256": "5ca1ab1e" * 8},
}


def replayed(emitted, drafted=4):
    """An answer of steps that emitted so many tokens each; the last slot said 60 %."""
    known = sum(emitted)
    steps = []
    for count in emitted:
        confidence = (0.9, 0.8, 0.7, 0.6)
        row = JudgedRow(False, 0, confidence, min(drafted, known), min(count - 1, drafted))
        again = JudgedRow(True, 1, confidence[1:], drafted - 1, 2)
        accepted = ("first",) * (count - 1)
        steps.append(
            ReplayedStep(known, count, accepted, {"first": drafted}, drafted, (row, again))
        )
        known -= count
    return Replayed(tuple(steps))


def write_evaluation(path, model="some/target"):
    """A JSON as `d2sd evaluate` writes it: two suites, greedy and at temperature 1."""
    kinds = [("gsm8k", 0.0), ("gsm8k", 0.0), ("mt-bench", 0.0), ("gsm8k", 1.0)]
    responses = [Response((1, 2), (3,) * 20, t, kind) for kind, t in kinds]
    short, long = replayed((2,) * 30), replayed((4, 5, 1) * 10)
    found = groups(responses, {"block": [short] * 4, "dual:branches=4": [short, long, long, short]})
    fit = {
        "before": [asdict(group) for group in found if group.honesty is not None],
        "after": [asdict(group) for group in found if group.honesty is not None],
    }
    values = {
        "responses": "runs/eval.jsonl",
        "groups": [asdict(group) for group in found],
        "fit": fit,
        "run": {"commit": "beef", "model": model, "dtype": "bfloat16"},
    }
    path.write_text(json.dumps(values))
    return path


def write_training(folder):
    lines = [{"started": START}]
    for stage, base in (("first", 1.5), ("second", 2.0)):
        for doubling in range(6):
            line = {"stage": stage, "step": 100 * 2**doubling, "positions": 10**6 * 2**doubling}
            line |= {
                "seconds": 60.0,
                "loss": 5 - doubling / 2,
                "rate": 1.0 if doubling < 5 else 0.1,
            }
            line |= {"block": base + doubling / 4, "dual": None, "per_slot": [0.5]}
            lines.append(line | ({"dual": 3 + doubling / 8} if stage == "second" else {}))
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def trained(tmp_path):
    """A folder as training leaves it."""
    folder = tmp_path / "drafters"
    fitted = {"mask_token_id": 0, "target_layer_ids": [1, 3], "temperatures": {"0": [0.9, 1.1]}}
    save_drafter(folder / "first", 1, dflash_config=fitted)
    save_drafter(folder / "second", 2)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    write_training(folder)
    return folder


def written(folder, *evaluations, **wording):
    return card(read_subject(folder, evaluations, Wording(**wording))).text


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_hugging_face_reads(trained, tmp_path):
    evaluation = write_evaluation(tmp_path / "eval.json")
    values = front_matter(written(trained, evaluation, licence="apache-2.0"))
    assert (values["license"], values["base_model"]) == ("apache-2.0", "some/target")
    assert (values["library_name"], values["tags"][0]) == ("d2sd", "speculative-decoding")
    assert front_matter(written(trained, base_model="a/b"))["base_model"] == "a/b"


def test_only_a_hub_id_is_a_base_model(trained, tmp_path):
    evaluation = write_evaluation(tmp_path / "eval.json", model="/home/somebody/models/mine")
    text = written(trained, evaluation)
    assert "base_model" not in front_matter(text)
    assert "# Drafters for mine\n" in text
    assert "### mine, greedy: eval.jsonl" in text


def test_the_shape_comes_from_the_configs_and_the_weights(trained):
    text = written(trained)
    assert "| layers × width × feed-forward | 1 × 32 × 48, 4 query heads, 2 key heads |" in text
    assert "| features | outputs of the target's layers 1, 3 |" in text
    assert "| temperatures by decoding temperature | at 0: 0.90, 1.10 | not fitted |" in text
    assert "| layout | DFlash, float32, 0.0 MB |" in text
    assert "| parameters | 0.0 M |" in text
    assert "--drafter FOLDER/first --second-drafter FOLDER/second" in text


def test_data_and_training_come_from_their_records(trained):
    text = written(trained)
    assert "4224 answers of the target (SHA-256 of their tokens `5ca1ab1e5ca1ab1e`), 48 of" in text
    assert "| first | 3200 | 32.0 M | 6 min | 2.75 | step 3200 |" in text
    assert "| second | 3200 | 32.0 M | 6 min | 3.62 | step 3200 |" in text
    assert "commit: c0ffee" in text
    assert '"max_length": 512' in text


def test_the_next_doubling_is_told_as_a_prediction(trained):
    text = written(trained)
    assert "Predicted, not measured: twice the slots of the first stage give +0.25 ± 0.00" in text
    assert "Predicted, not measured: twice the slots of the second stage give +0.12" in text
    assert "which steepens b" in text  # the rates fell


def test_evaluations_fill_tables_and_pictures(trained, tmp_path):
    text = written(trained, write_evaluation(tmp_path / "eval.json"))
    greedy = text.split("### some/target, greedy: eval.jsonl")[1].split("###")[0]
    assert "| mt-bench | 1 | 2.00 ± 0.00 | 3.33 ± 0.00 |" in greedy
    assert "| mean over suites |  | 2.00 | 3.00 |" in greedy
    assert re.search(r"\| `block` \| \d+\.\d % \| \d+\.\d % \| \d+\.\d % \|", greedy)
    assert "### some/target, temperature 1: eval.jsonl" in text
    for name in ("suites-t0", "depths-t0", "reliability-t0", "boundaries-t0", "depths-t1"):
        assert f"](plots/{name}.png)" in text
    assert "suites-t1" not in text  # one suite needs no plot
    assert "judged on answers they were not fitted on" in text


def test_two_evaluations_have_pictures_of_their_own(trained, tmp_path):
    paths = [write_evaluation(tmp_path / name) for name in ("a.json", "b.json")]
    pictures = re.findall(r"\]\((plots/.*?)\)", written(trained, *paths))
    assert len(set(pictures)) == len(pictures)
    assert {"plots/suites-1-t0.png", "plots/suites-2-t0.png"} <= set(pictures)


def test_what_is_missing_is_not_measured_and_nothing_is_invented(tmp_path):
    text = written(save_drafter(tmp_path / "drafter"))
    assert "Not recorded: there is no recipe.json" in text
    assert "Not measured: there is no training.jsonl." in text
    assert "Not measured: no JSON of `d2sd evaluate` was given." in text
    assert "Not recorded: no file given carries a provenance record." in text
    assert "Licence: not stated." in text
    assert "Their target: not recorded." in text
    assert front_matter(text).keys() == {"library_name", "tags"}
    assert "](plots/" not in text
    assert "--drafter FOLDER\n" in text


def test_a_training_without_seconds_or_acceptance_says_so(trained):
    (trained / "training.jsonl").write_text('{"stage": "first", "step": 5, "positions": 1000}\n')
    text = written(trained)
    assert "| first | 5 | 0.0 M | not measured | not measured |  |" in text
    assert "The first stage has too few points for a prediction." in text


def test_every_measured_number_of_the_evaluation_is_in_the_file(trained, tmp_path):
    finding = read_evaluation(write_evaluation(tmp_path / "eval.json")).findings[0]
    dual = finding.policies["dual:branches=4"]
    assert finding.answers == {"gsm8k": 2, "mt-bench": 1}
    assert dual.suites["mt-bench"].mean == pytest.approx(100 / 30)
    assert dual.bars.intervals["mt-bench"] == pytest.approx((100 / 30, 100 / 30))
    assert dual.depths[0] == pytest.approx(70 / 90)  # 30 of 30, then twice 20 of 30
    assert sum(dual.told.held) == pytest.approx(1)
    assert dual.told.first.error > 0


@pytest.mark.parametrize("text", ["{", "[]", '{"groups": [], "run": 3, "fit": 4}', '{"run": {}}'])
def test_a_file_that_is_no_evaluation_is_named(trained, tmp_path, text):
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(ValueError, match=r"eval\.json is no JSON of d2sd evaluate"):
        read_subject(trained, [tmp_path / "eval.json"], Wording())


def test_a_folder_without_a_drafter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no drafter: neither config\.json nor one"):
        read_subject(tmp_path, [], Wording())


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_the_card_and_every_picture_it_shows(trained, tmp_path):
    (tmp_path / "notes.md").write_text("## Limits\n\nEnglish | only.\n")
    evaluation = write_evaluation(tmp_path / "eval.json")
    line = ["card", str(trained), "--evaluation", str(evaluation)]
    assert run([*line, "--notes", str(tmp_path / "notes.md"), "--license", "mit"]) == 0
    text = (trained / "README.md").read_text()
    pictures = re.findall(r"\]\((plots/.*?)\)", text)
    assert {str(path.relative_to(trained)) for path in trained.glob("plots/*")} == set(pictures)
    assert "\n## Limits\n\nEnglish | only.\n" in text
    notes = "## Limits\n\nEnglish | only.\n"
    assert written(trained, evaluation, licence="mit", notes=notes) == text  # the same each time


@pytest.mark.parametrize("step", ["draw", "write"])
def test_a_write_that_fails_leaves_the_old_card_whole(trained, tmp_path, monkeypatch, step):
    assert run(["card", str(trained)]) == 0
    before = files(trained)

    def dies(*_, **__):
        raise KeyboardInterrupt

    if step == "draw":
        monkeypatch.setattr(module, "draw_learning", dies)
    else:
        monkeypatch.setattr("pathlib.Path.write_text", dies)
    with open(trained / "training.jsonl", "a") as file:
        file.write('{"stage": "one", "step": 5, "positions": 1000, "block": 9.5}\n')
    before[trained / "training.jsonl"] = (trained / "training.jsonl").read_bytes()
    assert run(["card", str(trained)]) == 130
    assert files(trained) == before
    monkeypatch.undo()
    assert run(["card", str(trained)]) == 0
    assert "| one | 5 |" in (trained / "README.md").read_text()


def test_what_a_killed_write_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / ".README.md.part" / "plots").mkdir(parents=True)
    page = Page()
    page.add("# Title")
    assert page.write(tmp_path / "README.md") == [tmp_path / "README.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_card_says_what_it_cannot_read(trained, tmp_path, capsys):
    assert run(["card", str(trained), "--notes", str(tmp_path / "none.md")]) == 2
    assert "none.md can't be read" in capsys.readouterr().err
    (trained / "first" / "model.safetensors").write_bytes(b"half")
    assert run(["card", str(trained)]) == 2
    assert "model.safetensors can't be read" in capsys.readouterr().err
