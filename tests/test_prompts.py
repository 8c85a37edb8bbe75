"""Prompt files."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2sd.bench.prompts import Prompt, read_prompts


def test_prompts_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"id": "x", "turns": ["é"]}\n\n{"id": 7, "turns": ["a", "b"], "category": "c"}\nrest'
    )
    assert read_prompts(file, 2) == [Prompt("x", ("é",)), Prompt("7", ("a", "b"))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "x", "turns": ["a"', "line 2 is not JSON"),
        ('["x"]', "line 2 is no object"),
        ('{"id": "x"}', 'line 2 has no list of texts under "turns"'),
        ('{"id": "x", "turns": []}', 'line 2 has no list of texts under "turns"'),
        ('{"id": "x", "turns": [3]}', 'line 2 has no list of texts under "turns"'),
        ('{"turns": ["a"]}', 'line 2 has no "id"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "x", "turns": ["a"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"prompts.jsonl, {words}"):
        read_prompts(file)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"id": "x", "turns": ["\xff"]}')
    with pytest.raises(ValueError, match="line 1 is not UTF-8"):
        read_prompts(file)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jsonl cannot be read: No such file"):
        read_prompts(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="limit is 0"):
        read_prompts(tmp_path / "empty.jsonl", 0)
