"""The pages say what the code does: every number and drawing of one-step.md is made again here."""

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest
import torch

from d2sd.drafters.boundary import all_accepted, likely_boundaries, rejection_posterior
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.policies import POLICIES
from d2sd.sampling import Sampling
from d2sd.target.masks import tree_mask, tree_positions
from d2sd.tree import Branch, TokenTree
from d2sd.verify import VERIFIERS, verify
from fakes import ScriptedProposer, context_of, spread
from folders import save_target

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ONE_STEP = ROOT / "docs/one-step.md"

WORDS = [":", "3", "×", "4", "=", "12", "9", "boxes", "+", "eggs"]
CHAIN = ["3", "×", "3", "=", "9"]
CONFIDENCE = torch.tensor([0.95, 0.84, 0.62, 0.70, 0.42], dtype=torch.float64)
REDRAFTS = {1: "boxes × 4 =", 2: "4 = 12", 3: "+ 3", 4: "9"}
ANSWER = ["3", "×", "4", "=", "12", "eggs"]
COMMITTED = 40


def ids(words: list[str]) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in words)


def table(words: list[str], confidence: torch.Tensor) -> torch.Tensor:
    """A row's probabilities; slots that it shows come first and say nothing."""
    rows = [
        spread({WORDS.index(w): float(c)}, len(WORDS))
        for w, c in zip(words, confidence, strict=True)
    ]
    shown = [torch.full((len(WORDS),), torch.nan).double()] * (len(CHAIN) - len(rows))
    return torch.stack([*shown, *rows])


def drafted() -> TokenTree:
    """The step's tree, by the drafter itself."""
    first = ScriptedProposer(6, {(): table(CHAIN, CONFIDENCE)})
    sure = {kept: torch.full((len(CHAIN) - kept,), 0.5) for kept in REDRAFTS}
    second = ScriptedProposer(
        6, {ids(CHAIN[:kept]): table(w.split(), sure[kept]) for kept, w in REDRAFTS.items()}
    )
    return DualDrafter(first, second, branches=4).draft(context_of((0,) * (COMMITTED + 1)))


def judged(tree: TokenTree):
    """The verdict for a target that answers ANSWER; off its path it says the anchor again."""
    logits = torch.zeros(len(tree), len(WORDS))
    for node in range(len(tree)):
        said = tree.tokens_on(tree.path_to(node))
        on_path = ids(ANSWER)[: len(said)] == said
        logits[node, ids(ANSWER)[len(said)] if on_path else 0] = 1
    return verify(tree, logits, Sampling(), [0])


def posterior_table() -> list[str]:
    posterior = rejection_posterior(CONFIDENCE)
    chosen = likely_boundaries(posterior, 4)
    lines = []
    for i, (c, r) in enumerate(zip(CONFIDENCE, posterior, strict=True)):
        rank = str(chosen.index(i) + 1) if i in chosen else "–"
        lines.append(f"| {i} | `{CHAIN[i]}` | {c:.2f} | {r:.3f} | {rank} |")
    return lines


def row_table() -> list[str]:
    rows = []
    for kept in likely_boundaries(rejection_posterior(CONFIDENCE), 4):
        shown = " ".join([":", *CHAIN[:kept], *"▒" * (len(CHAIN) - kept)])
        rows.append(f"{f'i = {kept}':8}{shown:16}→   {REDRAFTS[kept]}")
    return rows


def drawing(tree: TokenTree) -> str:
    lines = []

    def write(node: int, lead: str, hook: str) -> None:
        label = f"{lead}{hook}{WORDS[tree.tokens[node]]}"
        lines.append(f"{node:2}  {label:22}{tree.sources[node]}")
        below = [child for child in range(len(tree)) if tree.parents[child] == node]
        lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[hook]
        for child in below:
            write(child, lead, "└─ " if child == below[-1] else "├─ ")

    write(0, "", "")
    return "\n".join(lines)


def mask_drawing(tree: TokenTree) -> str:
    seen = tree_mask(tree, COMMITTED, torch.float32)[0, 0, :, COMMITTED:] == 0
    positions = tree_positions(tree, COMMITTED)[0].tolist()
    head = f"{'node':16}" + " ".join(f"{n:2}" for n in range(len(tree)))
    lines = [
        f"{n:2}  {WORDS[tree.tokens[n]]:6}at {positions[n]}  "
        + " ".join(" ■" if see else " ·" for see in row)
        for n, row in enumerate(seen.tolist())
    ]
    return "\n".join([f"{head}", *lines])


def numbers_in_prose() -> list[str]:
    tree, verdict = drafted(), judged(drafted())
    draws = torch.eye(len(WORDS))[list(ids([*ANSWER[:3], "4", "4", "4"]))]
    chain_alone = verify(tree.first(6), draws, Sampling(), [0])
    emitted = [WORDS[t] for t in (*tree.tokens_on(verdict.path), verdict.bonus)]
    assert emitted == ANSWER
    return [
        f"sum to {float(rejection_posterior(CONFIDENCE).sum()):.3f}",
        f"the missing {float(all_accepted(CONFIDENCE)):.3f}",
        f"{len(tree)} nodes instead of {(4 + 1) * 6}",
        f"path {' → '.join(map(str, verdict.path))}",
        f"bonus `{WORDS[verdict.bonus]}`",
        f"Emitted: {len(emitted)} tokens",
        f"would have emitted {len(chain_alone.path)}",
        f"rows {', '.join(map(str, verdict.path))}",
        f"position {COMMITTED + len(verdict.path)}",
    ]


@pytest.mark.parametrize("make", [posterior_table, row_table, numbers_in_prose])
def test_one_step_prints_what_the_code_computes(make):
    page = ONE_STEP.read_text()
    assert not [piece for piece in make() if piece not in page]


@pytest.mark.parametrize("make", [drawing, mask_drawing])
def test_one_step_draws_what_the_code_builds(make):
    assert make(drafted()) in ONE_STEP.read_text()


def test_the_policies_page_has_every_policy():
    page = (ROOT / "docs/policies.md").read_text()
    assert not [name for name in POLICIES if f"`{name}`" not in page]


def test_the_methods_page_has_every_verifier_and_says_which_are_lossy():
    page = (ROOT / "docs/methods.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert {name: "lossy" not in lines[name] for name in VERIFIERS} == {
        name: verifier.lossless for name, verifier in VERIFIERS.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_pages_names_only_what_exists(page):
    fence = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    for block in fence.findall(page.read_text()):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("d2sd"):
                module = importlib.import_module(node.module)
                assert not [name.name for name in node.names if not hasattr(module, name.name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_the_drafter_that_contributing_shows_works():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"^ *```python\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)[1]
    names = {"__name__": "contributing"}
    exec(textwrap.dedent(block), names)
    tree = names["EchoDrafter"](length=2).draft(context_of((4, 5, 6)))
    assert tree == TokenTree.from_branches(6, [Branch((5, 6), "echo")])


def test_the_readmes_python_runs(tmp_path, capsys):
    page = (ROOT / "README.md").read_text()
    block = re.search(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    assert block.count("\n") == 10
    small = block.replace("smollm2-135m", str(save_target(tmp_path))).replace(
        "dual:branches=4", "ngram"
    )
    exec(small, {"__name__": "readme"})
    assert float(capsys.readouterr().out.split()[-1]) >= 1
