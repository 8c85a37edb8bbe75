"""What `import d2sd` offers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import d2sd


def test_names_are_sorted_and_there() -> None:
    assert d2sd.__all__ == sorted(d2sd.__all__)
    for name in d2sd.__all__:
        assert getattr(d2sd, name).__name__ == name
    assert set(d2sd.__all__) <= set(dir(d2sd))


def test_type_checkers_see_the_same_names() -> None:
    source = Path(d2sd.__file__).read_text()
    assert sorted(re.findall(r"import (\w+) as \1$", source, re.MULTILINE)) == d2sd.__all__


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'decoed'"):
        _ = d2sd.decoed


@pytest.mark.parametrize("statement", ["import d2sd", "import d2sd.cli"])
def test_torch_waits_until_it_is_needed(statement: str) -> None:
    check = f"{statement}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert version("d2sd") == d2sd.__version__
