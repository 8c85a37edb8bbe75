"""Which number type is chosen, and that the measurement measures."""

import time

import pytest
import torch

from d2sd import precision
from d2sd.precision import ENOUGH, faster_dtype, why_faster
from d2sd.session import ModelChoice

measured_gain = precision.bfloat16_gain  # conftest puts a constant in its place for the tests


@pytest.mark.parametrize(
    ("gain", "dtype", "words"),
    [
        (2.08, torch.bfloat16, "bfloat16: 2.1 times as fast as float32 here"),
        (ENOUGH, torch.bfloat16, "bfloat16: 1.2 times as fast"),
        (ENOUGH - 0.01, torch.float32, "float32: bfloat16 is 1.2 times as fast here"),
        (0.33, torch.float32, "float32: bfloat16 is 0.3 times as fast here"),
    ],
)
def test_bfloat16_must_be_clearly_faster(monkeypatch, gain, dtype, words):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda threads: gain)
    assert faster_dtype() == dtype
    assert why_faster().startswith(words)


@pytest.mark.parametrize(("slower", "expected"), [(torch.float32, 3.0), (torch.bfloat16, 1 / 3)])
def test_the_gain_is_the_ratio_of_the_medians(monkeypatch, slower, expected):
    now = [0.0]

    def seconds(sweep):
        now[0] += 1
        outlier = 100.0 if now[0] == 4 else 1.0
        return 0.01 * outlier * (3.0 if sweep._rows.dtype == slower else 1.0)

    monkeypatch.setattr(precision._Sweep, "seconds", seconds)
    monkeypatch.setattr(precision, "FEWEST_ROUNDS", 5)
    assert gain_now() == pytest.approx(expected)


def test_the_measurement_is_real_short_and_made_once():
    start = time.perf_counter()
    gain = gain_now()
    assert time.perf_counter() - start < 5  # 0.05 on an idle machine
    assert 0.01 < gain < 100
    assert measured_gain(torch.get_num_threads()) == gain


def gain_now() -> float:
    measured_gain.cache_clear()
    return measured_gain(torch.get_num_threads())


def test_the_automatic_choice_can_be_kept_from_the_machine(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda threads: 9.0)
    choice = ModelChoice(device="cpu")
    assert choice.torch_dtype() == torch.bfloat16
    assert choice.exact().torch_dtype() == torch.float32
    assert ModelChoice(device="cpu", dtype="bfloat16").exact().torch_dtype() == torch.bfloat16


def test_a_gpu_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda threads: 0.1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ModelChoice(device="cuda").torch_dtype() == torch.bfloat16
    assert ModelChoice(device="cuda").exact().torch_dtype() == torch.bfloat16
