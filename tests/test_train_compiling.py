"""The step is compiled where that pays and can be done, and goes on where it can't."""

import pytest
import torch

from d2sd.train import compiling
from d2sd.train.compiling import choose_compiler, uncompiled
from drafters import random_network


@pytest.fixture
def compiles(monkeypatch):
    """torch.compile that works, at once."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


@pytest.fixture
def told():
    return []


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(("wanted", "large", "is_compiled"), [
    (None, True, True), (None, False, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_large_networks_are_compiled_unless_told_otherwise(
    monkeypatch, told, wanted, large, is_compiled
):
    network = random_network()
    size = sum(weight.numel() for weight in network.parameters())
    monkeypatch.setattr(compiling, "WORTHWHILE", size if large else size + 1)
    chosen = choose_compiler(wanted, network, told.append)
    assert (chosen is torch.compile) == is_compiled
    assert (chosen is uncompiled) == (not is_compiled)
    assert not told


@pytest.mark.parametrize(
    "error", [RuntimeError("No working C++ compiler found\n in g++"), OSError("g++")]
)
def test_without_a_compiler_it_goes_on_and_says_so_once(monkeypatch, told, error):
    def broken(function):
        def call(*_):
            raise error

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert choose_compiler(True, random_network(), told.append) is uncompiled
    assert told == [f"training goes on uncompiled and slower: {str(error).splitlines()[0]}"]
