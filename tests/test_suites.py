import json
import re
import sys
from types import ModuleType

import pytest

from d2sd.bench.prompts import Prompt, read_prompts
from d2sd.bench.suites import SAMPLE_FOLDER, SOURCES, SUITES, load_suite, origin, parse_suites

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
EXPERT = (
    "You are an expert Python programmer. You will be given a question (problem specification) "
    "and will generate a correct Python program that matches the specification and passes all "
    "tests. You will NOT return anything except for the program\n\n### Question:\n"
)
ANSWER = "\n```\n\n### Answer: (use the provided format with backticks)"

# Per suite: what load_dataset is asked for, a row as the dataset has it, and its prompt.
FETCHED = {
    "gsm8k": (
        ("openai/gsm8k", "main", "test"),
        {"question": "How many eggs?", "answer": "3 * 4 = 12\n#### 12"},
        Prompt("gsm8k-0", (f"How many eggs?{BOXED}",)),
    ),
    "math500": (
        ("HuggingFaceH4/MATH-500", None, "test"),
        {"problem": "Find $\\frac{1}{2}$ of 8.", "answer": "4", "unique_id": "test/algebra/1.json"},
        Prompt("math500-0", (f"Find $\\frac{{1}}{{2}}$ of 8.{BOXED}",)),
    ),
    "aime25": (
        ("MathArena/aime_2025", None, "train"),
        {"problem_idx": 1, "problem": "Find $b$.", "answer": 70},
        Prompt("aime25-0", (f"Find $b$.{BOXED}",)),
    ),
    "humaneval": (
        ("openai/openai_humaneval", None, "test"),
        {"task_id": "HumanEval/0", "prompt": 'def f():\n    """Is {1}."""\n', "test": "..."},
        Prompt(
            "HumanEval/0",
            (
                "Write a solution to the following problem and make sure that it passes the tests:"
                '\n```python\ndef f():\n    """Is {1}."""\n\n```',
            ),
        ),
    ),
    "mbpp": (
        ("google-research-datasets/mbpp", "sanitized", "test"),
        {"task_id": 11, "prompt": "Write a function.", "code": "def f(): ...", "test_list": []},
        Prompt("mbpp-0", ("Write a function.",)),
    ),
    "livecodebench": (
        ("json", None, "train"),
        {"question_content": "Sum two.", "starter_code": "", "private_test_cases": "eJxr"},
        Prompt(
            "livecodebench-0",
            (
                f"{EXPERT}Sum two.\n\n### Format: Write your code in the following format:\n"
                f"```python\n# YOUR CODE HERE{ANSWER}",
            ),
        ),
    ),
    "mt-bench": (
        ("HuggingFaceH4/mt_bench_prompts", None, "train"),
        {"prompt_id": 81, "category": "writing", "prompt": ["Write.", "Again."], "reference": []},
        Prompt("mt_bench-81", ("Write.", "Again.")),
    ),
    "alpaca": (
        ("tatsu-lab/alpaca", None, "train"),
        {"instruction": "Name three.", "input": "", "output": "a", "text": "b"},
        Prompt("alpaca-0", ("Name three.",)),
    ),
}


@pytest.fixture
def hub(monkeypatch):
    """A module `datasets` in place of the real one: hands out `rows`, notes what it is asked."""
    module = ModuleType("datasets")
    module.rows, module.asked, module.read = [], [], 0

    def stream():
        for row in module.rows:
            module.read += 1
            yield row

    def load_dataset(path, name=None, *, data_files=None, split=None, streaming=False):
        module.asked.append((path, name, split))
        module.files = data_files
        return stream() if streaming else list(module.rows)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder that holds two prompts of gsm8k and of mt-bench, the latter as mt_bench.jsonl."""
    for name in ("gsm8k", "mt_bench"):
        lines = [json.dumps({"id": f"{name}-{n}", "turns": [f"local {n}"]}) for n in (3, 8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_every_suite_has_a_row_here():
    assert tuple(FETCHED) == SUITES


@pytest.mark.parametrize("name", SUITES)
def test_a_row_at_hugging_face_becomes_the_harness_prompt(hub, name):
    asked, row, prompt = FETCHED[name]
    hub.rows = [row]
    assert load_suite(name) == [prompt]
    assert hub.asked == [asked]


def test_a_starter_and_an_input_have_their_own_wording():
    row = {
        "question_content": "Sum.",
        "starter_code": "class Solution:\n    def f(self):\n        ",
    }
    [turn] = SOURCES["livecodebench"].prompt(7, row).turns
    assert turn == (
        f"{EXPERT}Sum.\n\n### Format: Use the following code structure:\n"
        f"```python\nclass Solution:\n    def f(self):\n        {ANSWER}"
    )
    row = {"instruction": "Sort.", "input": "3, 1, 2"}
    assert SOURCES["alpaca"].prompt(7, row) == Prompt("alpaca-7", ("Sort.\n\nInput:\n3, 1, 2",))


def test_a_limit_takes_the_first_rows_in_order(hub):
    hub.rows = [{"question": str(n)} for n in range(9)]
    assert [prompt.id for prompt in load_suite("gsm8k", 3)] == ["gsm8k-0", "gsm8k-1", "gsm8k-2"]


def test_the_files_of_a_large_suite_are_read_only_as_far_as_asked(hub):
    hub.rows = [{"question_content": str(n), "starter_code": ""} for n in range(9)]
    assert len(load_suite("livecodebench", 2)) == 2
    assert hub.read == 2
    base = "hf://datasets/livecodebench/code_generation_lite/test"
    assert hub.files == [f"{base}{part}.jsonl" for part in ("", 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("name", ["gsm8k", "mt-bench"])
def test_a_folder_comes_first(hub, folder, name):
    stem = name.replace("-", "_")
    prompts = [Prompt(f"{stem}-3", ("local 3",)), Prompt(f"{stem}-8", ("local 8",))]
    assert load_suite(name, folder=folder) == prompts
    assert load_suite(name, 1, folder) == prompts[:1]
    assert hub.asked == []
    assert origin(name, folder) == str(folder / f"{stem}.jsonl")


def test_what_the_folder_lacks_is_fetched(hub, folder):
    hub.rows = [FETCHED["mbpp"][1]]
    assert load_suite("mbpp", folder=folder) == [FETCHED["mbpp"][2]]
    assert origin("mbpp", folder) == "Hugging Face google-research-datasets/mbpp"


def test_a_folder_that_is_none_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match=r"--suite-dir .*nowhere is no folder; .* gsm8k\.jsonl"):
        load_suite("gsm8k", folder=tmp_path / "nowhere")
    assert hub.asked == []


def no_way_out(name, folder=None):
    with pytest.raises(ValueError, match=f"suite '{name}'") as caught:
        load_suite(name, folder=folder)
    said = str(caught.value)
    assert "\n" not in said
    for way in ("--suite-dir", f"{name}.jsonl", "pip install 'd2sd[bench]'", "--suite sample"):
        assert way in said
    return said


def test_without_datasets_all_ways_out_are_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "datasets" in no_way_out("aime25", folder)


def test_without_a_network_the_reason_is_told_in_one_line(hub, monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the hub\n(name not known)" + " and so on" * 50)

    monkeypatch.setattr(hub, "load_dataset", unreachable)
    said = no_way_out("gsm8k")
    assert "ConnectionError: Couldn't reach the hub (name not known)" in said
    assert len(said) < 500


def test_a_dataset_that_has_changed_is_told(hub):
    hub.rows = [{"text": "no question"}]
    assert "KeyError: 'question'" in no_way_out("gsm8k")


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("name", ["gsm8k", "sample"])
def test_a_limit_below_one_is_refused(hub, name, limit):
    with pytest.raises(ValueError, match=f"limit is {limit}; it must be 1 or more"):
        load_suite(name, limit)


WORDINGS = {
    "gsm8k": r".+[^ ]" + re.escape(BOXED),
    "math500": r".+[^ ]" + re.escape(BOXED),
    "aime25": r".+[^ ]" + re.escape(BOXED),
    "humaneval": r"Write a solution to the following problem and make sure that it passes the tests"
    r":\n```python\n.+\n```",
    "mbpp": r"Write a (python )?function .+\.",
    "livecodebench": re.escape(EXPERT) + r".+\n\n### Format: [^\n]+:\n```python\n.+"
    r"" + re.escape(ANSWER),
    "mt-bench": r".+",
    "alpaca": r".+",
}


@pytest.mark.parametrize("name", SUITES)
def test_the_shipped_sample_is_worded_like_its_suite(name):
    prompts = read_prompts(SAMPLE_FOLDER / f"{name}.jsonl")
    assert len(prompts) == 2
    for prompt in prompts:
        assert len(prompt.turns) == (2 if name == "mt-bench" else 1)
        assert re.fullmatch(WORDINGS[name], prompt.turns[0], re.DOTALL)


def test_the_sample_is_a_folder_like_any_other(hub):
    for name in SUITES:
        assert load_suite(name, folder=SAMPLE_FOLDER) == read_prompts(
            SAMPLE_FOLDER / f"{name}.jsonl"
        )
    assert hub.asked == []


def test_sample_goes_through_all_suites_before_it_comes_back_to_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    prompts = load_suite("sample")
    firsts = [load_suite(name, 1, SAMPLE_FOLDER)[0] for name in SUITES]
    assert prompts[: len(SUITES)] == firsts == load_suite("sample", len(SUITES))
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 2 * len(SUITES)
    assert origin("sample") == "shipped with d2sd"


def test_only_what_may_be_copied_is_and_its_licence_lies_beside_it():
    notice = (SAMPLE_FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    assert {path.stem for path in SAMPLE_FOLDER.glob("*.jsonl")} == set(SUITES)
    for name in SUITES:
        [line] = [line for line in notice.splitlines() if f"{name}.jsonl" in line]
        ours = [prompt.id.startswith("own-") for prompt in load_suite(name, folder=SAMPLE_FOLDER)]
        if "written for d2sd" in line:
            assert all(ours)
        else:
            assert not any(ours)
            assert re.search("MIT|CC BY 4.0|Apache-2.0", line)
            numbers = [re.findall(r"\d+$", p.id)[0] for p in load_suite(name, 2, SAMPLE_FOLDER)]
            assert " and ".join(numbers) in line
    assert "Permission is hereby granted" in notice


@pytest.mark.parametrize(
    ("text", "suites"),
    [
        ("gsm8k", ("gsm8k",)),
        (" mt_bench, gsm8k ,", ("mt-bench", "gsm8k")),
        ("all", SUITES),
        ("sample", ("sample",)),
        ("alpaca,all,gsm8k", ("alpaca", *(name for name in SUITES if name != "alpaca"))),
    ],
)
def test_a_list_of_suites_is_read(text, suites):
    assert parse_suites(text) == suites


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsm9k", r"unknown suite 'gsm9k'; choose from gsm8k, .*alpaca, all, sample"),
        (" ,", "no suite is given; choose from gsm8k"),
    ],
)
def test_a_suite_that_is_not_known_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_suites(text)


def test_load_suite_refuses_what_is_not_known(folder):
    with pytest.raises(ValueError, match="unknown suite 'gsm9k'"):
        load_suite("gsm9k", folder=folder)
