"""The scripts for a GPU: what is cut comes back whole, and no prompt is a suite's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2sd.answers.packed import PackedAnswers, packed_lines
from d2sd.cli import run
from d2sd.drafters.checkpoint import load_network
from d2sd.train.responses import read_responses
from folders import save_target
from trainings import arguments, make_home

SCRIPTS = Path(__file__).parents[1] / "scripts" / "gpu"
MATH = "Ann has 3 apples and buys 4 more at the market. How many apples does Ann have now?"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


def cut(tmp_path, size=2500):
    import shards

    whole = tmp_path / "weights"
    whole.write_bytes(bytes(i % 251 for i in range(size)))
    return whole, shards.split(whole, tmp_path / "parts", 1000 / shards.MIB)


@pytest.mark.parametrize("size", [0, 999, 1000, 2500])
def test_a_cut_file_comes_back_whole(tmp_path, size):
    import shards

    whole, manifest = cut(tmp_path, size)
    parts = sorted((tmp_path / "parts").glob("*.part[0-9]*"))
    assert [part.stat().st_size for part in parts[:-1]] == [1000] * (len(parts) - 1)
    assert all(part.stat().st_size <= 1000 for part in parts)
    shards.join(manifest, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole.read_bytes()


def test_a_file_cut_again_leaves_no_older_parts(tmp_path):
    cut(tmp_path, 2500)
    cut(tmp_path, 500)
    assert len(list((tmp_path / "parts").glob("*.part[0-9]*"))) == 1


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda part: part.write_bytes(b"x" + part.read_bytes()[1:]), "part01 is damaged"),
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "part01 is damaged"),
        (lambda part: part.unlink(), "part01 is missing"),
    ],
)
def test_a_damaged_part_is_named_and_nothing_is_written(tmp_path, capsys, harm, said):
    import shards

    _, manifest = cut(tmp_path)
    harm(tmp_path / "parts" / "weights.part01")
    assert shards.main(["join", str(manifest), str(tmp_path / "again")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("again*"))


def given_prompts():
    from prompts import Prompt

    kinds = ("math", "chat", "code")
    return [
        Prompt(kinds[i % 3], (f"Question {i} is about the number {i * i}; what of it?",))
        for i in range(60)
    ]


def test_prompts_that_share_a_text_or_a_long_sentence_with_a_suite_are_left_out():
    from prompts import BOXED, Forbidden, Prompt, built

    ours = given_prompts()
    inside = Prompt(
        "chat", (f"My homework. ann has 3 apples and buys 4 more at the  MARKET. {BOXED}",)
    )
    forbidden = Forbidden([MATH, ours[7].turns[0].upper() + "\n" + BOXED])
    assert forbidden.holds(inside)
    assert not forbidden.holds(Prompt("math", (f"What is 2 + 2?\n{BOXED}",)))
    made = built([*ours, inside, Prompt("math", (MATH,))], forbidden, seed=0)
    words = " ".join(turn for prompt in made for turn in prompt.turns)
    assert "apples" not in words
    assert "Question 7 " not in words
    assert "Question 8 " in words


def test_follow_ups_are_checked_like_prompts():
    from prompts import FOLLOW_UPS, Forbidden, built

    taken = FOLLOW_UPS["math"][0]
    made = built(given_prompts(), Forbidden([taken]), seed=0)
    assert taken not in {turn for prompt in made for turn in prompt.turns}


def test_greedy_prompts_come_once_and_the_seed_decides_all():
    from prompts import Forbidden, built

    made = built(given_prompts(), Forbidden([]), seed=3)
    assert len(made) >= 150
    greedy = [prompt for number, prompt in enumerate(made) if number % 3 != 2]
    assert len(set(greedy)) == len(greedy)
    assert made == built(given_prompts(), Forbidden([]), seed=3)
    assert made != built(given_prompts(), Forbidden([]), seed=4)


def test_the_script_refuses_a_folder_without_suites(tmp_path, capsys):
    import prompts

    (tmp_path / "p.jsonl").write_text(json.dumps({"kind": "chat", "prompt": "hello"}) + "\n")
    words = [str(tmp_path / name) for name in ("p.jsonl", "nowhere", "out.jsonl")]
    assert prompts.main(words) == 2
    assert "holds no suites" in capsys.readouterr().err


def answer_lines(count=5, largest=40):
    return [
        {"id": i, "kind": "k", "turn": 0, "temperature": 0.5, "prompt_ids": [i, largest],
         "response_ids": list(range(i + 2)), "finish": "stop", "prompt": "p", "response": "r"}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("largest", [40, 49151, 151935])
def test_packed_answers_come_back_without_their_texts(tmp_path, largest):
    lines = answer_lines(largest=largest)
    file = PackedAnswers(tmp_path / "a.packed")
    file.append([lines[:2], lines[2:3]])
    file.append([lines[3:]])
    bare = [{k: v for k, v in line.items() if k not in ("prompt", "response")} for line in lines]
    assert list(packed_lines(tmp_path / "a.packed")) == bare
    read = read_responses(tmp_path / "a.packed")
    assert [r.response_ids for r in read] == [tuple(line["response_ids"]) for line in lines]


@pytest.mark.parametrize("lost", [1, 30, 400])
def test_a_torn_end_is_cut_off_and_written_again(tmp_path, lost):
    path, lines = tmp_path / "a.packed", answer_lines()
    file = PackedAnswers(path)
    file.append([lines[:2]])
    file.append([lines[2:]])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, 3)])
    again = PackedAnswers(path)
    for part in ([lines[:2]], [lines[2:]])[len(again) :]:
        again.append(part)
    assert path.read_bytes() == whole


def test_damage_inside_is_an_error(tmp_path):
    path = tmp_path / "a.packed"
    PackedAnswers(path).append([answer_lines()])
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="damaged"):
        PackedAnswers(path)


def test_answering_goes_on_where_its_time_was_over(tmp_path, capsys):
    target = save_target(tmp_path / "target")
    rows = [{"id": i, "kind": "k", "prompt": "ab" * (i % 5 + 1)} for i in range(10)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(out, *more):
        words = ["--model", target, "--dtype", "float32", "--device", "cpu", "--batch", 4]
        words += ["--max-new-tokens", 6, "--temperatures", "0,0,1", "--out", tmp_path / out, *more]
        assert run(["regenerate", *map(str, [tmp_path / "p.jsonl", *words])]) == 0
        return capsys.readouterr().err

    answer("whole.packed")
    said = [answer("parts.packed", "--minutes", 0) for _ in range(3)]
    assert ["wait for another run" in words for words in said] == [True, True, False]
    assert (tmp_path / "parts.packed").read_bytes() == (tmp_path / "whole.packed").read_bytes()
    answer("plain.jsonl")
    assert "wait for another run" in answer("slow.jsonl", "--minutes", 0)
    answer("slow.jsonl")
    assert (tmp_path / "slow.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
    plain, packed = (read_responses(tmp_path / f) for f in ("plain.jsonl", "whole.packed"))
    assert sorted(map(repr, plain)) == sorted(map(repr, packed))


def first_weights(folder):
    return load_network(folder / "out" / "first").state_dict()


def test_a_training_carried_from_sitting_to_sitting_ends_like_one(home, tmp_path, capsys):
    import sitting

    assert run(arguments(home, tmp_path / "one", "--stage", "first")) == 0
    place = tmp_path / "many"
    for _ in range(6):
        sitting.restore(tmp_path / "carried", place / "work")
        assert run(arguments(home, place, "--stage", "first", "--minutes", "0")) == 0
        if (place / "out").exists():
            break
        assert sitting.keep(place / "work", tmp_path / "carried", mib=1, total=60) == "whole"
        subprocess.run(["rm", "-r", str(place)], check=True)  # a bare machine
    assert "the time is over: stage first stands at step" in " ".join(
        capsys.readouterr().err.split()
    )
    one, many = first_weights(tmp_path / "one"), first_weights(place)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_light_checkpoint_is_half_as_large_and_goes_on(home, tmp_path):
    import sitting

    place = tmp_path / "place"
    assert run(arguments(home, place, "--stage", "first", "--set", "first.steps=4")) == 0
    work = place / "work"
    whole = sum(path.stat().st_size for path in work.glob("*/*.safetensors"))
    total = 0.75 * whole / (1 << 20)
    assert sitting.keep(work, tmp_path / "carried", mib=1, total=total) == "light"
    before = load_file(work / "first" / "checkpoint.safetensors")
    subprocess.run(["rm", "-r", str(place)], check=True)
    assert sitting.restore(tmp_path / "carried", work)
    light = load_file(work / "first" / "checkpoint.safetensors")
    for name, tensor in before.items():
        assert light[name].dtype == (torch.bfloat16 if tensor.ndim > 1 else tensor.dtype), name
        torch.testing.assert_close(light[name].to(tensor.dtype), tensor, rtol=0.01, atol=0)
    assert run(arguments(home, place, "--stage", "first")) == 0
    log = (work / "training.jsonl").read_text()
    assert '"step": 6' in log
    with pytest.raises(ValueError, match="raise --total"):
        sitting.keep(work, tmp_path / "small", mib=1, total=0.001)


def test_a_target_in_parts_that_is_another_file_is_refused(tmp_path, monkeypatch, capsys):
    import shards
    import target

    monkeypatch.setenv("D2SD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"no model" * 99)
    manifest = shards.split(tmp_path / "m.gguf", tmp_path / "parts", 0.0002)
    assert target.main([str(manifest)]) == 2
    assert "expected 98362432" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "smollm2-135m").exists()


def test_the_cascade_is_right_where_it_is_timed():
    import kernel

    found = kernel.kernel(
        kernel.Measuring(torch.device("cpu"), "m", None, None, tiny=True), nodes=8
    )
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        assert row["error"] < 1e-5
        assert min(row["cascade"], row["masked"], row["floor"]) > 0


def test_the_scripts_say_how_they_are_used():
    for script in ("shards", "sitting", "prompts", "target"):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / f"{script}.py"), "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"python scripts/gpu/{script}.py" in done.stdout
