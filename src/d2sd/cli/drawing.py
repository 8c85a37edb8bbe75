"""A step's tree as text: chains on one line, the accepted path marked, each proposer named."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from d2sd.cli.terminal import pages
from d2sd.decode import Step
from d2sd.generate import Piece
from d2sd.tree import TokenTree

FIRST = "first"
"""The source of what the first pass drafted."""

LEGEND = (
    "✓ and green: accepted by the target · dim: who drafted it (second@3: the second pass, which "
    "kept 3 tokens of the first) · spaces show as · and line breaks as ↵"
)


@dataclass(frozen=True)
class Run:
    """Nodes that follow each other without a fork, from one source, all accepted or none."""

    nodes: tuple[int, ...]
    source: str
    accepted: bool


def first_pass_length(step: Step) -> int:
    """Accepted tokens up to the first one that pass 1 had not drafted: where it had stopped."""
    length = 0
    for node in step.verdict.path[1:]:
        if step.tree.sources[node] != FIRST:
            break
        length += 1
    return length


def children_of(tree: TokenTree) -> dict[int, list[int]]:
    """Node -> its children, in the order they were drafted."""
    children: dict[int, list[int]] = defaultdict(list)
    for node in range(1, len(tree)):
        children[tree.parents[node]].append(node)
    return children


def run_from(node: int, step: Step, children: dict[int, list[int]]) -> Run:
    """The longest run that begins at `node`."""
    sources, accepted = step.tree.sources, frozenset(step.verdict.path)
    nodes = [node]
    while len(after := children.get(nodes[-1], [])) == 1:
        [following] = after
        alike = sources[following] == sources[node]
        if not alike or (following in accepted) != (node in accepted):
            break
        nodes.append(following)
    return Run(tuple(nodes), sources[node], node in accepted)


class Drawing:
    """Prints steps as they come and remembers what the summary needs."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._steps: list[Step] = []
        pages.print(LEGEND, style="dim")

    def show(self, piece: Piece) -> None:
        """One step: a headline, then its tree."""
        step = piece.step
        self._steps.append(step)
        pages.print()
        pages.print(self._drawn(step, f"[bold]step {len(self._steps)}[/]  {self._headline(step)}"))
        if piece.finish_reason:
            cut = len(step.emitted) - len(piece.tokens)
            words = f", {cut} tokens after it are cut off" if cut else ""
            pages.print(f"the end: {piece.finish_reason}{words}", style="dim")

    def sum_up(self) -> None:
        """What each proposer's drafts came to, over all steps."""
        accepted = Counter(
            step.tree.sources[node] for step in self._steps for node in step.verdict.path[1:]
        )
        drafted = Counter(source for step in self._steps for source in step.tree.sources[1:])
        emitted = sum(len(step.emitted) for step in self._steps)
        pages.print(
            f"\n[bold]{emitted} tokens in {len(self._steps)} steps[/], acceptance length "
            f"[bold]{emitted / len(self._steps):.2f}[/]"
        )
        if drafted[FIRST] and len(drafted) > 1:
            alone = sum(first_pass_length(step) + 1 for step in self._steps) / len(self._steps)
            pages.print(f"pass 1 alone would have come to {alone:.2f} in these steps")
        for source, nodes in sorted(drafted.items()):
            pages.print(f"  {escape(source)}: {accepted[source]} accepted of {nodes} drafted")

    def _headline(self, step: Step) -> str:
        parts = [f"{step.drafted} drafted", f"{len(step.verdict.path) - 1} accepted"]
        if FIRST in step.tree.sources:
            parts.append(f"pass 1 would have stopped after {first_pass_length(step)}")
        bonus = self._text([step.verdict.bonus])
        return f"{', '.join(parts)}; bonus [bold yellow]{bonus}[/]"

    def _drawn(self, step: Step, headline: str) -> Tree:
        children = children_of(step.tree)
        drawn = Tree(headline, guide_style="dim")
        anchor = drawn.add(f"[bold]{self._text(step.tree.tokens[:1])}[/] [dim]anchor[/]")

        waiting = [(anchor, child) for child in reversed(children[0])]
        while waiting:
            parent, node = waiting.pop()
            run = run_from(node, step, children)
            branch = parent.add(self._label(step.tree, run))
            waiting += [(branch, child) for child in reversed(children[run.nodes[-1]])]
        return drawn

    def _label(self, tree: TokenTree, run: Run) -> str:
        text = self._text([tree.tokens[node] for node in run.nodes])
        text = f"[bold green]✓ {text}[/]" if run.accepted else text
        return f"{text} [dim]{escape(run.source)}[/]"

    def _text(self, tokens: Sequence[int]) -> str:
        return " ".join(escape(readable(self._decoded(token))) for token in tokens)

    def _decoded(self, token: int) -> str:
        text: str = self._tokenizer.decode(
            [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def readable(text: str) -> str:
    """One token's text on one line, with every character to be seen."""
    shown = text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
