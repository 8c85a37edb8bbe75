"""Every table of measured figures in the docs equals the committed output it was made from."""

import json
import re
from pathlib import Path

import pytest

from d2sd.bench.results import read_results
from d2sd.bench.run import logged
from d2sd.report import results_page
from d2sd.report.markdown import to_markdown
from d2sd.report.tables import short_table

ROOT = Path(__file__).parents[1]
STUDIES = ("main", "related", "budget", "ablation", "falsify", "block-size")
TABLE = re.compile(
    r"<!-- table (?P<name>[\w-]+) of (?P<file>docs/[\w./-]+\.json) -->\n+(?P<table>(?:\|.*\n)+)"
)


def cells(row):
    return [cell.strip().strip("`*") for cell in row.strip().strip("|").split("|")]


def made_tables():
    """Tables that a committed script made, with the page that prints them."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(*match.group("file", "name", "table"), id=f"{page.name}:{match['name']}")
        for page in pages
        for match in TABLE.finditer(page.read_text())
    ]


@pytest.mark.parametrize(("file", "name", "table"), made_tables())
def test_a_printed_table_is_the_one_its_script_made(file, name, table):
    made = json.loads((ROOT / file).read_text())["tables"][name]
    header, _, *rows = table.splitlines()
    assert cells(header) == made["columns"]
    assert [cells(row) for row in rows] == made["rows"]


def test_tables_made_by_scripts_are_found():
    assert len(made_tables()) >= 5


@pytest.mark.parametrize("study", STUDIES)
def test_results_are_those_of_the_raw_log(study):
    folder = ROOT / "docs/results" / study
    assert read_results(folder / "results.json") == logged(folder)


def test_the_results_page_is_made_from_the_results(monkeypatch):
    monkeypatch.chdir(ROOT)  # links are relative to the page
    page = Path("docs/results.md")
    folders = [Path("docs/results") / study for study in STUDIES]
    found = {folder: read_results(folder / "results.json") for folder in folders}
    assert page.read_text() == results_page(found, page)


def test_the_readme_shows_the_main_study():
    results = read_results(ROOT / "docs/results/main/results.json")
    shown = to_markdown([short_table(results, results.means[0])], {})
    assert shown.strip() in (ROOT / "README.md").read_text()


def test_the_identity_table_is_the_measured_one():
    results = read_results(ROOT / "docs/results/identity-float32/results.json")
    [section] = results.sections
    page = (ROOT / "docs/acceptance.md").read_text()
    for name, row in section.rows.items():
        line = f"| `{name}` | {row.acceptance_length.value:.2f} | {row.nodes_per_step:.1f} "
        assert f"{line}| {row.identical} of {row.turns} |\n" in page


def test_block_verification_accepts_no_less_than_token_level_on_any_suite():
    counts = json.loads((ROOT / "docs/results/verifier-replay.json").read_text())["counts"]
    suites = {name: found for name, found in counts.items() if name.startswith("drawn at 1:")}
    assert len(suites) == 8
    for prompts in suites.values():
        assert sum(p["block"] for p in prompts) >= sum(p["token"] for p in prompts)
