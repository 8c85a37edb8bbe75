"""Targets, drafters and proposers whose every probability is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.costs import CostTable
from d2sd.drafters.proposer import Proposal, Proposer
from d2sd.interfaces import Context, Drafter, Scores, Target
from d2sd.tree import Branch, TokenTree
from d2sd.verify import Verdict


def random_table(vocab: int, order: int = 1, scale: float = 1.5, seed: int = 0) -> Tensor:
    """Next-token probabilities for every history of `order` tokens: [vocab] * order + [vocab]."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn([vocab] * (order + 1), generator=rng, dtype=torch.float64)
    return (scale * noise).softmax(-1)


class MarkovTarget(Target):
    """A target whose next token depends on the last `order` tokens through a table.

    `table[a, b]` (order 2) is the distribution after the history `a, b`. Histories that are too
    short are padded with token 0 in front. Logits are the logarithms of the table, float64, so
    the law of any output is known exactly: see `law`. Asserts that every context it is given is
    the one it returned last, as a target with a cache would need.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table.double()
        self.order = table.ndim - 1
        self.vocab_size = table.shape[-1]
        self.passes = 0
        self._tokens: tuple[int, ...] = ()

    def next_probs(self, history: Sequence[int]) -> Float[Tensor, " vocab"]:
        """The target's distribution after `history`."""
        padded = [0] * self.order + list(history)
        return self.table[tuple(padded[-self.order :])]

    def law(self, prompt: Sequence[int], length: int) -> dict[tuple[int, ...], float]:
        """Probability of every continuation of `length` tokens at temperature 1."""
        chances = {}
        for tokens in itertools.product(range(self.vocab_size), repeat=length):
            chance = 1.0
            for place, token in enumerate(tokens):
                chance *= float(self.next_probs([*prompt, *tokens[:place]])[token])
            chances[tokens] = chance
        return chances

    def greedy(self, prompt: Sequence[int], length: int) -> tuple[int, ...]:
        """Plain greedy decoding, without the loop."""
        tokens = list(prompt)
        for _ in range(length):
            tokens.append(int(self.next_probs(tokens).argmax()))
        return tuple(tokens[len(prompt) :])

    def prefill(self, prompt: Sequence[int]) -> Context:
        if not prompt:
            raise ValueError("the prompt is empty; give at least one token")
        return self._at(tuple(prompt))

    def score(self, context: Context, tree: TokenTree) -> Scores:
        assert context.tokens == self._tokens, "a context that is not the current one"
        assert tree.tokens[0] == context.anchor
        self.passes += 1
        rows = [
            self.next_probs((*context.tokens, *tree.tokens_on(tree.path_to(node))))
            for node in range(len(tree))
        ]
        features = torch.zeros(len(tree), 1, 1)
        return Scores(tree, torch.stack(rows).log(), features)

    def commit(self, context: Context, scores: Scores, verdict: Verdict) -> Context:
        accepted = scores.tree.tokens_on(verdict.path)
        return self._at((*context.tokens, *accepted, verdict.bonus))

    def _at(self, tokens: tuple[int, ...]) -> Context:
        self._tokens = tokens
        return context_of(tokens)


def context_of(tokens: Sequence[int]) -> Context:
    """A context with empty features, for drafters that need none."""
    return Context(tuple(tokens), torch.zeros(len(tokens) - 1, 1, 1))


class ScriptedDrafter(Drafter):
    """Drafts the branches that `script` gives for a context: `ScriptedDrafter(lambda c: [])`."""

    def __init__(self, script: Callable[[Context], Iterable[Sequence[int]]]) -> None:
        self.script = script

    def draft(self, context: Context) -> TokenTree:
        branches = [Branch(tuple(tokens)) for tokens in self.script(context)]
        return TokenTree.from_branches(context.anchor, branches)


class ScriptedProposer(Proposer):
    """Hands out given tables `[slots, vocab]`, found by the tokens visible after the anchor.

    `tables[()]` answers a row of the anchor alone, `tables[(5, 7)]` one that also shows 5 and 7.
    Every pass is kept in `passes` as (visible rows, block size).
    """

    def __init__(self, block_size: int, tables: Mapping[tuple[int, ...], Tensor]) -> None:
        self.block_size = block_size
        self.tables = tables
        self.passes: list[tuple[tuple[tuple[int, ...], ...], int]] = []

    def propose(
        self, context: Context, visible: Sequence[tuple[int, ...]], block_size: int | None = None
    ) -> Proposal:
        assert all(row[0] == context.anchor for row in visible)
        size = block_size or self.block_size
        self.passes.append((tuple(visible), size))
        rows = torch.stack([self.tables[row[1:]][: size - 1] for row in visible])
        assert rows.shape[1] == size - 1
        return Proposal.from_probs(rows)


class MarkovProposer(Proposer):
    """The best one-pass proposer for an order-1 table: exact marginals of every position.

    Given what a row shows, slot s has the law of the token that many moves after the last visible
    one. `sharpness` raises probabilities to a power, `noise` disturbs their logarithms once and
    for all. Slots that are visible hold nan, so whoever reads them is found out.
    """

    def __init__(
        self,
        table: Float[Tensor, "vocab vocab"],
        block_size: int,
        sharpness: float = 1.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.block_size = block_size
        rng = torch.Generator().manual_seed(seed)
        power, self.marginals = torch.eye(len(table), dtype=torch.float64), []
        for _ in range(2 * block_size):
            power = power @ table.double()
            disturbed = power.log() + noise * torch.randn(table.shape, generator=rng)
            self.marginals.append((sharpness * disturbed).softmax(-1))

    def propose(
        self, context: Context, visible: Sequence[tuple[int, ...]], block_size: int | None = None
    ) -> Proposal:
        size = block_size or self.block_size
        probs = torch.full((len(visible), size - 1, len(self.marginals[0])), torch.nan)
        for number, row in enumerate(visible):
            for slot in range(len(row) - 1, size - 1):
                probs[number, slot] = self.marginals[slot + 1 - len(row)][row[-1]]
        return Proposal.from_probs(probs)


def spread(probs: Mapping[int, float], vocab: int) -> Tensor:
    """One slot's distribution: the given probabilities, the rest shared by the other tokens."""
    rest = (1 - sum(probs.values())) / (vocab - len(probs))
    row = torch.full((vocab,), rest, dtype=torch.float64)
    for token, chance in probs.items():
        row[token] = chance
    return row


def draw(tree: TokenTree) -> str:
    """A tree as text: one line per node, children indented under their parent, with its source."""
    lines: list[str] = []

    def write(node: int) -> None:
        lines.append(f"{'. ' * tree.depths[node]}{tree.tokens[node]} {tree.sources[node]}")
        for child in range(len(tree)):
            if tree.parents[child] == node:
                write(child)

    write(0)
    return "\n".join(lines)


def paths_of(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every node of a tree as the tokens that lead to it, the anchor left out."""
    return {tree.tokens_on(tree.path_to(node)) for node in range(1, len(tree))}


def straight_costs(
    node: float = 0.05,
    first: float = 0.2,
    row: float = 0.05,
    second: float = 0.2,
    base: float = 1.0,
) -> CostTable:
    """Seconds that rise straight: a target pass of `base` and `node` a node, passes by their rows.

    A pass that costs 0 costs next to nothing: a table holds no zeros.
    """
    counts, rows = (1, 128), (1, 16)

    def line(start: float, step: float, places: Sequence[int]) -> tuple[tuple[float], ...]:
        return tuple((max(start + step * (place - 1), 1e-9),) for place in places)

    return CostTable(
        nodes=counts,
        contexts=(1,),
        target=line(base, node, counts),
        rows=rows,
        first=line(first, row, rows),
        second=line(second, row, rows),
        overhead=0.0,
    )
