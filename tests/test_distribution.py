"""The law of what is emitted: χ² against the target's exact law, and mutants that must fail.

Three tokens over a vocabulary of three are 27 outcomes. The true rule must stay near its degrees
of freedom for every shape of tree; each mutant is a mistake met in published code or noise that
is used twice, written with the signature of `verify`, and must be found out by a wide margin.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from d2sd.decode import decode
from d2sd.sampling import Sampling, filtered
from d2sd.tree import Branch, TokenTree
from d2sd.verify import Verdict, verify, verify_at_once, verify_row_by_row
from fakes import MarkovTarget, ScriptedDrafter, random_table

VOCAB, LENGTH, SAMPLES = 3, 3, 2000
PROMPT = (1, 2)
TARGET = MarkovTarget(random_table(VOCAB, order=2, seed=4))
GUESS = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)  # the drafter's own probabilities

Rows = Sequence[tuple[int, ...]]
Script = Callable[[tuple[int, ...], torch.Generator], Rows]
Rule = Callable[[TokenTree, Tensor, Sampling, Sequence[int]], Verdict]


def seeded(**options) -> Sampling:
    rng = torch.Generator().manual_seed(7)
    return Sampling(**{"temperature": 1.0, "rng": rng} | options)


class Emitter:
    """Runs draft, score, verify with everything that can be remembered remembered."""

    def __init__(self, script: Script, rule: Rule) -> None:
        self.script, self.rule = script, rule
        self.rng = torch.Generator().manual_seed(11)  # the drafter's, apart from the target's
        self.scored: dict[tuple, tuple[TokenTree, Tensor]] = {}

    def outcome(self, sampling: Sampling) -> tuple[int, ...]:
        tokens = PROMPT
        while len(tokens) < len(PROMPT) + LENGTH:
            tree, logits = self._scored(tokens, tuple(self.script(tokens, self.rng)))
            verdict = self.rule(tree, logits, sampling, tokens)
            tokens += (*tree.tokens_on(verdict.path), verdict.bonus)
        return tokens[len(PROMPT) :][:LENGTH]

    def _scored(self, tokens: tuple[int, ...], rows: Rows) -> tuple[TokenTree, Tensor]:
        if (tokens, rows) not in self.scored:
            tree = TokenTree.from_branches(tokens[-1], [Branch(row) for row in rows])
            words = [tree.tokens_on(tree.path_to(node)) for node in range(len(tree))]
            probs = torch.stack([TARGET.next_probs(tokens + word) for word in words])
            self.scored[tokens, rows] = tree, probs.log()
        return self.scored[tokens, rows]


def chi_square(outcomes: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Pearson's statistic; infinite when something impossible was emitted."""
    counts = Counter(outcomes)
    if any(law[outcome] == 0 for outcome in counts):
        return float("inf")
    expected = {outcome: len(outcomes) * chance for outcome, chance in law.items() if chance}
    return sum((counts[outcome] - mean) ** 2 / mean for outcome, mean in expected.items())


def limit(law: dict[tuple[int, ...], float], risk: float = 1e-3) -> float:
    """The statistic that a true law exceeds with probability `risk`."""
    freedom = sum(chance > 0 for chance in law.values()) - 1
    grid = torch.arange(0, 20 * freedom, 0.01, dtype=torch.float64)
    survival = torch.special.gammaincc(torch.tensor(freedom / 2).double(), grid / 2)
    return float(grid[survival < risk][0])


def statistic(script: Script, rule: Rule, sampling: Sampling, samples: int = SAMPLES) -> float:
    emitter = Emitter(script, rule)
    return chi_square([emitter.outcome(sampling) for _ in range(samples)], law_of(sampling))


RULES = [verify_row_by_row, verify_at_once]  # that of the CPU and that of accelerators


@cache
def true_statistic(script: Script, rule: Rule) -> float:
    return statistic(script, rule, seeded())


def law_of(sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The exact law under temperature and filters, by transformers' warpers on the table."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    table = warpers(None, TARGET.table.reshape(-1, VOCAB).log()).softmax(-1)
    return MarkovTarget(table.reshape(TARGET.table.shape)).law(PROMPT, LENGTH)


# --- trees: from the drafter's rows, which never look at the target's draws ---


def empty(tokens, rng):
    return ()


def chain(tokens, rng):
    return (TARGET.greedy(tokens, LENGTH),)


def mixed(tokens, rng):
    return ((0, 1, 2), (0, 2), (1,))


def full(tokens, rng):
    return tuple(itertools.product(range(VOCAB), repeat=LENGTH))


def by_context(tokens, rng):
    """Another shape and other tokens for every context."""
    seed = 7 * tokens[-1] + 3 * tokens[-2] + len(tokens)
    return tuple(tuple((seed + k * d) % VOCAB for d in range(k + 1)) for k in range(seed % 4))


def one_argmax(tokens, rng):
    return ((int(GUESS.argmax()),),)


def drawn_children(tokens, rng):
    """Two different tokens drawn from the guess, in the order they were drawn."""
    return tuple((int(x),) for x in torch.multinomial(GUESS, 2, generator=rng))


def a_drawn_child_kept_if_confident(tokens, rng):
    """One token drawn from the guess, drafted only where the guess is sure of it."""
    child = drawn_children(tokens, rng)[0]
    return (child,) if GUESS[child[0]] > 0.5 else ()


SCRIPTS = [empty, chain, mixed, full, by_context, a_drawn_child_kept_if_confident]


# --- rules: each mutant is one mistake ---


def children_of(tree: TokenTree, node: int) -> list[int]:
    return [child for child in range(len(tree)) if tree.parents[child] == node]


def leaves_of(tree: TokenTree) -> list[int]:
    return [node for node in range(len(tree)) if node not in tree.parents]


def coin(chance: float, sampling: Sampling) -> bool:
    return float(torch.rand((), generator=sampling.rng)) < chance


def pick(weights: Tensor, sampling: Sampling) -> int:
    return int(torch.multinomial(weights, 1, generator=sampling.rng))


def longest_of_independent_walks(tree, logits, sampling, history):
    """Every branch is verified with draws of its own; the longest acceptance wins."""
    verdicts = []
    for leaf in leaves_of(tree):
        path = tree.path_to(leaf)
        row = TokenTree.from_branches(tree.tokens[0], [Branch(tree.tokens_on(path))])
        verdict = verify(row, logits[list(path)], sampling, history)
        verdicts.append(Verdict(path[: len(verdict.path)], verdict.bonus))
    return max(verdicts, key=lambda verdict: len(verdict.path))


def a_draw_per_branch(tree, logits, sampling, history):
    """At every node one draw for each child; any match is kept."""
    path, seen = [0], list(history)
    while True:
        token = sampling.draw(logits[path[-1]], seen)
        for child in children_of(tree, path[-1]):
            token = sampling.draw(logits[path[-1]], seen)
            if token == tree.tokens[child]:
                break
        node = tree.children.get((path[-1], token))
        if node is None:
            return Verdict(tuple(path), token)
        path.append(node)
        seen.append(token)


def another_draw_after_a_miss(tree, logits, sampling, history):
    """The draw is looked at before it is final: if the tree lacks it, a second draw counts."""
    path, seen = [0], list(history)
    while True:
        token = sampling.draw(logits[path[-1]], seen)
        if (path[-1], token) not in tree.children:
            token = sampling.draw(logits[path[-1]], seen)
        node = tree.children.get((path[-1], token))
        if node is None:
            return Verdict(tuple(path), token)
        path.append(node)
        seen.append(token)


def ratio_test(tree, logits, sampling, history):
    """Children drawn from the guess without replacement, tested by target over guess in turn.

    Exact when the children are drawn so. Wrong for an argmax child, and wrong where a drawn child
    is dropped because of what it is: then those that stay no longer follow the guess.
    """
    wanted = filtered(logits[0] / sampling.temperature, sampling)
    guess = GUESS.clone()
    for child in children_of(tree, 0):
        token = tree.tokens[child]
        if coin(float(wanted[token] / guess[token]), sampling):
            return Verdict((0, child), sampling.draw(logits[child], [*history, token]))
        wanted = (wanted - guess).clamp(min=0)
        wanted = wanted / wanted.sum()
        guess[token] = 0
        guess = guess / guess.sum()
    return Verdict((0,), pick(wanted, sampling))


def ratio_test_of_the_favourite(tree, logits, sampling, history):
    """The drawn child that the target likes best is tested as if it had been the only draw."""
    favourite = max(children_of(tree, 0), key=lambda child: logits[0, tree.tokens[child]])
    alone = TokenTree.from_branches(tree.tokens[0], [Branch((tree.tokens[favourite],))])
    verdict = ratio_test(alone, logits[[0, favourite]], sampling, history)
    return Verdict((0, favourite)[: len(verdict.path)], verdict.bonus)


def walked(tree: TokenTree, draws: list[int]) -> Verdict:
    path = [0]
    while (node := tree.children.get((path[-1], draws[path[-1]]))) is not None:
        path.append(node)
    return Verdict(tuple(path), draws[path[-1]])


def noise_of_the_bonus_kept(tree, logits, sampling, history):
    """Only the accepted tokens' noise is given up: the bonus' draws the next token as well."""
    verdict = walked(tree, sampling.draw_all(logits, tree.depths).tolist())
    sampling.noise.emitted(len(verdict.path) - 1)
    return verdict


def noise_of_accepted_tokens_kept(tree, logits, sampling, history):
    """One position's noise is given up a step, whatever was accepted."""
    verdict = walked(tree, sampling.draw_all(logits, tree.depths).tolist())
    sampling.noise.emitted(1)
    return verdict


def one_noise_for_all_depths(tree, logits, sampling, history):
    """All nodes are drawn with the noise of the next position."""
    verdict = walked(tree, sampling.draw_all(logits, [0] * len(tree)).tolist())
    sampling.noise.emitted(len(verdict.path))
    return verdict


# what is drafted, the mistake, and the rule it is a mistake in
MUTANTS = [
    (mixed, longest_of_independent_walks, verify_row_by_row),
    (mixed, a_draw_per_branch, verify_row_by_row),
    (chain, another_draw_after_a_miss, verify_row_by_row),
    (one_argmax, ratio_test, verify_row_by_row),
    (a_drawn_child_kept_if_confident, ratio_test, verify_row_by_row),
    (drawn_children, ratio_test_of_the_favourite, verify_row_by_row),
    (mixed, noise_of_the_bonus_kept, verify_at_once),
    (mixed, noise_of_accepted_tokens_kept, verify_at_once),
    (mixed, one_noise_for_all_depths, verify_at_once),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_joint_law_is_the_targets_for_every_tree(script, rule):
    assert true_statistic(script, rule) < limit(law_of(seeded()))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.2}],
    ids=str,
)
@pytest.mark.parametrize(
    ("script", "rule"), [(mixed, verify_row_by_row), (by_context, verify_at_once)]
)
def test_the_joint_law_is_the_targets_under_temperature_and_filters(options, script, rule):
    sampling = seeded(**options)
    assert statistic(script, rule, sampling) < limit(law_of(sampling))


@pytest.mark.parametrize(("script", "mutant", "right"), MUTANTS)
def test_a_wrong_rule_is_found_out(script, mutant, right):
    threshold = limit(law_of(seeded()))
    assert statistic(script, mutant, seeded(), samples=1000) > 3 * threshold
    assert true_statistic(script, right) < threshold


def test_the_ratio_test_is_exact_where_its_premise_holds():
    # the control of two mutants: they fail by their trees, not by a slip in the rule
    assert statistic(drawn_children, ratio_test, seeded()) < limit(law_of(seeded()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("left_out", [{"temperature": 0.6}, {"top_k": 2}, {"min_p": 0.2}], ids=str)
def test_a_setting_left_out_is_found_out(left_out, rule):
    # power: draws at temperature 1 must not pass for draws under another setting
    emitter, sampling, law = Emitter(mixed, rule), seeded(), law_of(seeded(**left_out))
    outcomes = [emitter.outcome(sampling) for _ in range(1000)]
    assert chi_square(outcomes, law) > 2 * limit(law)


def test_decode_emits_the_targets_law():
    drafter = ScriptedDrafter(lambda context: by_context(context.tokens, None))
    sampling, outcomes = seeded(), []
    for _ in range(1500):
        emitted = []
        for step in decode(TARGET, drafter, PROMPT, sampling):
            emitted += step.emitted
            if len(emitted) >= LENGTH:
                break
        outcomes.append(tuple(emitted[:LENGTH]))
    law = law_of(sampling)
    assert chi_square(outcomes, law) < limit(law)
