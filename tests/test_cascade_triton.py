"""The GPU kernels against the tree mask's softmax: interpreted on a CPU, compiled for a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from cascades import HEADS, random_case
from d2sd.target.cascade import tree_attention

CASES = Path(__file__).with_name("triton_cases.py")
TOLERANCES = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 2e-2}

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed; it comes with torch for CUDA"
)


def outcome(tmp_path, task, what, **environment):
    done = subprocess.run(
        [sys.executable, str(CASES), task, what],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip("the interpreter of this Triton (3.6) cannot work with this NumPy (2.4)")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(errors):
    assert errors
    for name, error in errors.items():
        assert error < TOLERANCES[name.split()[1]], f"{name}: {error}"


@needs_triton
@pytest.mark.slow
def test_interpreted_kernels_give_the_numbers_of_the_tree_mask(tmp_path):
    errors = outcome(tmp_path, "errors", "cpu", TRITON_INTERPRET="1")
    assert {name.split()[0] for name in errors} >= set(HEADS)
    check(errors)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile_without_a_gpu(tmp_path, capability):
    sizes = outcome(tmp_path, "compile", capability)
    assert len(sizes) == 4
    assert all(size > 0 for size in sizes.values())


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_kernels_give_the_numbers_of_the_tree_mask(tmp_path):
    check(outcome(tmp_path, "errors", "cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_eager_pass_on_a_gpu_gives_them_too(dtype):
    case = random_case(HEADS["GQA"], 48, 300, dtype)
    on_gpu = case.on("cuda")
    result = tree_attention(on_gpu.query, on_gpu.keys, on_gpu.values, on_gpu.rows, case.scale).cpu()
    error = (result.double() - case.expected()).abs().max()
    assert error < TOLERANCES.get(str(dtype).removeprefix("torch."), 1e-12)
