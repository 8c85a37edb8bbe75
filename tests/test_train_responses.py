"""Reading responses: several files, broken lines, what is left out, what is held out."""

import gzip
import json

import pytest

from d2sd.train.responses import Response, read_responses, split


def line(prompt=(1, 2), answer=(3, 4, 5), **more):
    return json.dumps({"prompt_ids": list(prompt), "response_ids": list(answer), **more})


def write(path, *lines):
    path.write_text("".join(text + "\n" for text in lines))
    return path


def test_several_files_are_read_in_order(tmp_path):
    one = write(tmp_path / "one.jsonl", line((1,), temperature=0.8), line((2,), kind="gsm8k"))
    two = tmp_path / "two.jsonl.gz"
    two.write_bytes(gzip.compress(line((3,)).encode()))
    responses = read_responses([one, two])
    assert [(r.prompt_ids, r.temperature, r.kind) for r in responses] == [
        ((1,), 0.8, ""), ((2,), 0.0, "gsm8k"), ((3,), 0.0, ""),
    ]  # fmt: skip
    assert read_responses(two) == responses[2:]


BROKEN = [
    "{",
    "[]",
    '{"prompt_ids": [1]}',
    '{"prompt_ids": "12", "response_ids": [1, 2]}',
    '{"prompt_ids": [1], "response_ids": [1, -2]}',
    '{"prompt_ids": [1], "response_ids": [1, 2.0]}',
    '{"prompt_ids": [1], "response_ids": [1, 2], "temperature": "hot"}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_line_stops_with_its_file_and_number(text, tmp_path):
    path = write(tmp_path / "responses.jsonl", line(), "", text)
    with pytest.raises(ValueError, match=r"responses\.jsonl, line 3: not a response"):
        read_responses(path)


def test_broken_lines_are_skipped_and_told_on_request(tmp_path):
    path = write(tmp_path / "bad.jsonl", line((1,)), *BROKEN, line((2,)))
    good = write(tmp_path / "good.jsonl", line((3,)))
    told = []
    responses = read_responses([path, good], broken="skip", tell=told.append)
    assert [r.prompt_ids for r in responses] == [(1,), (2,), (3,)]
    assert told == [f"{path}: skipped 7 broken lines (2, 3, 4, 5, 6, …)"]


def test_bytes_that_are_no_text_are_one_broken_line(tmp_path):
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(line((1,)).encode() + b"\n\xff\xfe{\n" + line((2,)).encode())
    told = []
    assert len(read_responses(path, broken="skip", tell=told.append)) == 2
    assert told == [f"{path}: skipped 1 broken lines (2)"]


def test_a_file_cut_off_in_the_middle_is_named(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress("".join(line((i,)) + "\n" for i in range(3000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz, line \d+: the file can't be read"):
        read_responses(path)
    told = []
    assert 100 < len(read_responses(path, broken="skip", tell=told.append)) < 3000
    assert len(told) == 1


def test_answers_are_cut_and_those_too_short_are_told(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        line((1, 2), (3, 4, 5, 6)), line((1,) * 9, (3,) * 9), line((1,), (2,)), line((), (2, 3)),
    )  # fmt: skip
    told = []
    (response,) = read_responses(path, max_length=5, tell=told.append)
    assert response.tokens == (1, 2, 3, 4, 5)
    assert told == [f"{path}: left out 3 responses too short to learn from once cut"]


@pytest.mark.parametrize("text", ["", "\n", line(answer=(1,))])
def test_a_file_without_responses_is_refused(text, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no responses"):
        read_responses(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl can't be read: No such file"):
        read_responses(tmp_path / "gone.jsonl")


def test_no_prompt_is_in_training_and_in_validation():
    responses = [Response((i // 3,), (1, 2), 0.0) for i in range(30)]  # three answers a prompt
    training, held_out = split(responses, 5)
    assert held_out == [0, 6, 12, 18, 24]
    assert {responses[i].prompt_ids for i in training}.isdisjoint(
        responses[i].prompt_ids for i in held_out
    )
    assert len(training) == 15
    assert split(responses, 0) == (list(range(30)), [])
