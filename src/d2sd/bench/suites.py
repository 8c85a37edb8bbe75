"""Prompt suites by name: from a folder, from Hugging Face, or the small sample shipped with d2sd.

Wherever a prompt comes from, its wording is that of DFlash's harness, so figures can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from d2sd.bench.prompts import Prompt, read_prompts

ALL = "all"
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A suite at Hugging Face: which rows of which dataset, and the turns that a row becomes.

    `id` is a pattern over the row's fields and `number`, its place among the rows. With `files`
    these files of the dataset are read one after another, as they arrive; rows that are not asked
    for are not fetched.
    """

    dataset: str
    split: str
    turns: Callable[[Row], Sequence[str]]
    id: str
    config: str | None = None
    files: tuple[str, ...] = ()

    def rows(self) -> Iterable[Row]:
        """Raises whatever `datasets` does where the rows cannot be had."""
        from datasets import load_dataset

        if self.files:
            files = [f"hf://datasets/{self.dataset}/{file}" for file in self.files]
            return load_dataset("json", data_files=files, split=self.split, streaming=True)
        return load_dataset(self.dataset, self.config, split=self.split)

    def prompt(self, number: int, row: Row) -> Prompt:
        return Prompt(self.id.format(number=number, **row), tuple(self.turns(row)))


def _boxed(field: str) -> Callable[[Row], Sequence[str]]:
    request = "Please reason step by step, and put your final answer within \\boxed{}."
    return lambda row: [f"{row[field]}\n{request}"]


def _completed(row: Row) -> Sequence[str]:
    request = "Write a solution to the following problem and make sure that it passes the tests:"
    return [f"{request}\n```python\n{row['prompt']}\n```"]


def _programmed(row: Row) -> Sequence[str]:
    starter = row.get("starter_code")
    head = (
        "Use the following code structure" if starter else "Write your code in the following format"
    )
    return [
        "You are an expert Python programmer. You will be given a question (problem specification)"
        " and will generate a correct Python program that matches the specification and passes all"
        " tests. You will NOT return anything except for the program\n\n"
        f"### Question:\n{row['question_content']}\n\n"
        f"### Format: {head}:\n```python\n{starter or '# YOUR CODE HERE'}\n```\n\n"
        "### Answer: (use the provided format with backticks)"
    ]


def _instructed(row: Row) -> Sequence[str]:
    given = row.get("input")
    return [f"{row['instruction']}\n\nInput:\n{given}" if given else row["instruction"]]


SOURCES: Mapping[str, Source] = {
    "gsm8k": Source("openai/gsm8k", "test", _boxed("question"), "gsm8k-{number}", "main"),
    "math500": Source("HuggingFaceH4/MATH-500", "test", _boxed("problem"), "math500-{number}"),
    "aime25": Source("MathArena/aime_2025", "train", _boxed("problem"), "aime25-{number}"),
    "humaneval": Source("openai/openai_humaneval", "test", _completed, "{task_id}"),
    "mbpp": Source(
        "google-research-datasets/mbpp",
        "test",
        lambda row: [row["prompt"]],
        "mbpp-{number}",
        "sanitized",
    ),
    "livecodebench": Source(
        "livecodebench/code_generation_lite",
        "train",  # what the JSON reader calls files that are given without a split
        _programmed,
        "livecodebench-{number}",
        files=("test.jsonl", *(f"test{part}.jsonl" for part in range(2, 7))),
    ),
    "mt-bench": Source(
        "HuggingFaceH4/mt_bench_prompts", "train", lambda row: row["prompt"], "mt_bench-{prompt_id}"
    ),
    "alpaca": Source("tatsu-lab/alpaca", "train", _instructed, "alpaca-{number}"),
}
SUITES = tuple(SOURCES)


def parse_suites(text: str) -> tuple[str, ...]:
    """The suites of a comma-separated list, none twice; `all` is every suite but the sample.

    Raises ValueError for a suite that is not known, and for none at all.
    """
    asked = [part.strip().replace("_", "-") for part in text.split(",") if part.strip()]
    if not asked:
        raise ValueError(f"no suite is given; choose from {_choice()}")
    for name in asked:
        if name not in (*SUITES, ALL, SAMPLE):
            raise ValueError(f"unknown suite {name!r}; choose from {_choice()}")
    return tuple(dict.fromkeys(chain.from_iterable(SUITES if n == ALL else (n,) for n in asked)))


def load_suite(name: str, limit: int | None = None, folder: Path | None = None) -> list[Prompt]:
    """The first `limit` prompts of a suite (all by default), from `folder` if it holds the suite.

    Otherwise they come from Hugging Face. "sample" is what is shipped of all suites, the first
    prompt of every suite before the second of any. Raises ValueError, one sentence that names the
    ways out, where a suite cannot be had.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 or more")
    if name == SAMPLE:
        return _sample()[:limit]
    if name not in SOURCES:
        raise ValueError(f"unknown suite {name!r}; choose from {_choice()}")
    file = None if folder is None else _file(name, folder)
    return _fetched(name, limit) if file is None else read_prompts(file, limit)


def origin(name: str, folder: Path | None = None) -> str:
    """Where `load_suite` takes a suite from, in words for a record of the run."""
    if name == SAMPLE:
        return "shipped with d2sd"
    file = None if folder is None else _file(name, folder)
    return f"Hugging Face {SOURCES[name].dataset}" if file is None else str(file)


def _sample() -> list[Prompt]:
    parts = [load_suite(name, folder=SAMPLE_FOLDER) for name in SUITES]
    return [p for together in zip_longest(*parts) for p in together if p is not None]


def _file(name: str, folder: Path) -> Path | None:
    """The suite's file in the folder; hyphens and underscores in its name are alike."""
    if not folder.is_dir():
        raise ValueError(f"--suite-dir {folder} is no folder; give one of files like {name}.jsonl")
    files = [folder / f"{spelt}.jsonl" for spelt in (name, name.replace("-", "_"))]
    return next((file for file in files if file.exists()), None)


def _fetched(name: str, limit: int | None) -> list[Prompt]:
    source = SOURCES[name]
    try:
        return [source.prompt(n, row) for n, row in enumerate(islice(source.rows(), limit))]
    except Exception as error:  # the network's, the hub's, the file format's: no common kind
        raise ValueError(
            f"suite {name!r} is in no folder given and cannot be fetched from Hugging Face "
            f"({_in_short(error)}); give a folder that holds {name}.jsonl with --suite-dir, "
            f"install what fetches it with pip install 'd2sd[bench]', or take --suite {SAMPLE}"
        ) from error


def _in_short(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= 160 else said[:159] + '…'}"


def _choice() -> str:
    return ", ".join((*SUITES, ALL, SAMPLE))
