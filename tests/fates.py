"""Every way that chance can go, with its probability: the oracle for verifiers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from d2sd.draws import Draws, Kind
from d2sd.sampling import Sampling
from d2sd.tree import TokenTree, TreeBuilder
from fakes import MarkovTarget

Result = TypeVar("Result")


class Fates:
    """Makes the choices of a script, then first choices; remembers what it passed by."""

    def __init__(self, script: tuple[int, ...] = ()) -> None:
        self.script, self.made = script, ()
        self.chance, self.untried = 1.0, []

    def choose(self, chances: Sequence[float]) -> int:
        """A number drawn with these probabilities."""
        open_ones = [number for number, chance in enumerate(chances) if chance > 0]
        if len(self.made) < len(self.script):
            choice = self.script[len(self.made)]
        else:
            choice = open_ones[0]
            self.untried += [(*self.made, other) for other in open_ones[1:]]
        self.made += (choice,)
        self.chance *= chances[choice]
        return choice


def outcomes(run: Callable[[Fates], Result]) -> Iterator[tuple[float, Result]]:
    """All results of `run` with the probabilities of the ways that lead to them."""
    waiting = [()]
    while waiting:
        fates = Fates(waiting.pop())
        result = run(fates)
        waiting += fates.untried
        yield fates.chance, result


@dataclass(frozen=True)
class Fated(Sampling):
    """A sampling whose every draw is a choice of `fates`."""

    fates: Fates = field(default_factory=Fates)

    def coin(self, chance):
        chance = min(max(chance, 0.0), 1.0)
        return self.fates.choose([1 - chance, chance]) == 1

    def pick(self, weights):
        return self.fates.choose((weights / weights.sum()).tolist())

    def draw(self, logits, history):
        return self.pick(self.probs(logits, history))


Draft = Callable[[Fates], TokenTree]
Rule = Callable[[TokenTree, Tensor, Sampling, Sequence[int]], object]


def emitted(
    target: MarkovTarget, prompt: Sequence[int], draft: Draft, rule: Rule, **options: float
) -> dict[tuple[int, ...], float]:
    """The law of one step's tokens, accepted ones and bonus."""
    rows: dict[tuple[int, ...], Tensor] = {}

    def scored(word: tuple[int, ...]) -> Tensor:
        if word not in rows:
            rows[word] = target.next_probs((*prompt, *word)).log()
        return rows[word]

    def step(fates: Fates) -> tuple[int, ...]:
        tree = draft(fates)
        logits = torch.stack([scored(tree.tokens_on(tree.path_to(n))) for n in range(len(tree))])
        sampling = Fated(**{"temperature": 1.0, "fates": fates} | options)
        verdict = rule(tree, logits, sampling, prompt)
        return (*tree.tokens_on(verdict.path), verdict.bonus)

    law: dict[tuple[int, ...], float] = defaultdict(float)
    for chance, tokens in outcomes(step):
        law[tokens] += chance
    return law


def error(
    target: MarkovTarget, prompt: Sequence[int], law: dict[tuple[int, ...], float], length: int
) -> float:
    """Total variation between the target's law of `length` tokens and one that a step began.

    What a step leaves open is filled in by the target.
    """
    off = 0.0
    for word, chance in target.law(prompt, length).items():
        ours = 0.0
        for cut in range(1, length + 1):
            if word[:cut] in law:
                rest = target.law((*prompt, *word[:cut]), length - cut)
                ours += law[word[:cut]] * rest[word[cut:]]
        off += abs(ours - chance) / 2
    return off


def mean_accepted(law: dict[tuple[int, ...], float]) -> float:
    """How many drafted tokens a step accepts, on average."""
    return sum(chance * (len(tokens) - 1) for tokens, chance in law.items())


# --- drafts, drawn by fates from one law per depth ---


def drawn(fates: Fates, law: Tensor, count: int, again: bool) -> list[int]:
    """Tokens drawn one after another, replaced or not."""
    tokens: list[int] = []
    law = law.clone()
    for _ in range(count):
        if not law.sum() > 0:
            break
        tokens.append(fates.choose((law / law.sum()).tolist()))
        if not again:
            law[tokens[-1]] = 0
    return tokens


def draws_of(kind: Kind, laws: Tensor, tree: TokenTree, nodes: Sequence[int], shared=False):
    """The tree with its draws told: one law per depth, over the whole vocabulary."""
    depths, vocab = laws.shape
    draws = Draws(
        kind,
        torch.arange(vocab).expand(depths, vocab),
        laws,
        rows=tuple(min(depth, depths - 1) for depth in tree.depths),
        drawn=tuple(nodes),
        shared=shared,
    )
    return replace(tree, draws=draws)


def paths(laws: Tensor, count: int) -> Draft:
    """`count` independent paths through all depths, equal beginnings merged."""

    def draft(fates: Fates) -> TokenTree:
        builder, nodes = TreeBuilder(0), []
        for _ in range(count):
            node = 0
            for law in laws:
                [token] = drawn(fates, law, 1, again=True)
                node = builder.add(node, token, "sample")
                nodes.append(node)
        return draws_of(Kind.INDEPENDENT, laws, builder.tree(), nodes)

    return draft


def children(laws: Tensor, counts: Sequence[int], kind=Kind.DISTINCT, shared=False) -> Draft:
    """Every node of depth d has `counts[d]` draws below it."""

    def draft(fates: Fates) -> TokenTree:
        builder, nodes, above = TreeBuilder(0), [], [0]
        for law, count in zip(laws, counts, strict=True):
            again = kind is Kind.INDEPENDENT
            both = drawn(fates, law, count, again) if shared else None
            here = [
                builder.add(node, token, "sample")
                for node in above
                for token in both or drawn(fates, law, count, again)
            ]
            nodes += here
            above = list(dict.fromkeys(here))
        return draws_of(kind, laws, builder.tree(), nodes, shared)

    return draft


def hybrid(laws: Tensor, counts: Sequence[int]) -> Draft:
    """Every node has its favourite below it, and draws from the other tokens."""

    def draft(fates: Fates) -> TokenTree:
        builder, nodes, above = TreeBuilder(0), [], [0]
        for law, count in zip(laws, counts, strict=True):
            best = int(law.argmax())
            others = law.clone().index_fill_(0, torch.tensor([best]), 0)
            below = []
            for node in above:
                below.append(builder.add(node, best, "first"))
                tokens = drawn(fates, others, count, again=False)
                nodes += (new := [builder.add(node, token, "sample") for token in tokens])
                below += new
            above = below
        return draws_of(Kind.HYBRID, laws, builder.tree(), nodes)

    return draft


def fixed(*rows: tuple[int, ...]) -> Draft:
    """Always the same tree."""
    builder = TreeBuilder(0)
    for row in rows:
        builder.add_branch(0, row, "first")
    return lambda fates: builder.tree()


def every(vocab: int, length: int) -> tuple[tuple[int, ...], ...]:
    """All words of a length."""
    return tuple(itertools.product(range(vocab), repeat=length))
