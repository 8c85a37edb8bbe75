"""Every exact verifier by enumeration: its law is the target's to 1e-12, a mutant's is not.

Nothing is sampled here. All draws of the drafter and all coins of the rule are gone through with
their probabilities, three tokens of vocabulary, up to three deep.
"""

import itertools

import pytest
import torch

from d2sd.draws import Kind
from d2sd.sampling import Sampling
from d2sd.tree import Branch, TokenTree
from d2sd.verify import MATCH, VERIFIERS, Verdict, verifier_named
from d2sd.verify.lossy import near_the_best, typical
from d2sd.verify.ratio import draws_below, left_over, verify_by_rounds
from fakes import MarkovTarget, random_table
from fates import (
    Fated,
    children,
    drawn,
    draws_of,
    emitted,
    error,
    every,
    fixed,
    hybrid,
    mean_accepted,
    outcomes,
    paths,
)

VOCAB = 3
PROMPT = (1, 2)
TARGET = MarkovTarget(random_table(VOCAB, order=2, seed=4))
LAWS = random_table(VOCAB, order=1, seed=9)  # the drafter's own, one per depth
EXACT = 1e-12
WRONG = 1e-3

TRUE = {
    "nothing": fixed(),
    "fixed chain": fixed((2, 0, 1)),
    "fixed tree": fixed((2, 0, 1), (2, 1), (0, 1)),
    "full tree": fixed(*every(VOCAB, 2)),
    "drawn chain": paths(LAWS, 1),
    "two drawn paths": paths(LAWS[:2], 2),
    "two draws, then one": children(LAWS[:2], (2, 1), Kind.INDEPENDENT),
    "three draws": children(LAWS[:1], (3,), Kind.INDEPENDENT),
    "two distinct, then one": children(LAWS[:2], (2, 1)),
    "one, two distinct, one": children(LAWS, (1, 2, 1)),
    "all three": children(LAWS[:1], (3,)),
    "shared distinct": children(LAWS, (2, 1, 2), shared=True),
    "shared independent": children(LAWS[:2], (2, 2), Kind.INDEPENDENT, shared=True),
    "hybrid": hybrid(LAWS[:2], (1, 1)),
    "hybrid chain": hybrid(LAWS[:2], (0, 1)),
}
CHAINS = ("nothing", "fixed chain", "drawn chain")
UNDRAWN = ("nothing", "fixed chain", "fixed tree", "two drawn paths")
SHARED = ("shared distinct", "shared independent")


def takes(verifier, name):
    return (verifier.forks or name in CHAINS) and (verifier.shared or name not in SHARED)


PAIRS = [
    (verifier.name, name)
    for verifier in VERIFIERS.values()
    for name in TRUE
    if verifier.lossless and takes(verifier, name)
    if verifier is not MATCH or name in UNDRAWN  # a tree's draws are nothing to it
]


@pytest.mark.parametrize(("verifier", "name"), PAIRS)
def test_the_law_is_the_targets(verifier, name):
    law = emitted(TARGET, PROMPT, TRUE[name], VERIFIERS[verifier])
    assert sum(law.values()) == pytest.approx(1, abs=EXACT)
    assert error(TARGET, PROMPT, law, 4) < EXACT


@pytest.mark.parametrize("verifier", ["token", "block", "multi-round", "traversal"])
@pytest.mark.parametrize("seed", range(3))
def test_the_law_is_the_targets_for_other_tables(verifier, seed):
    target, laws = MarkovTarget(random_table(VOCAB, 2, seed=seed)), random_table(VOCAB, 1, 2, seed)
    law = emitted(target, (0,), paths(laws, 1), VERIFIERS[verifier])
    assert error(target, (0,), law, 4) < EXACT


@pytest.mark.parametrize("verifier", ["token", "block", "multi-round", "traversal"])
def test_a_perfect_drafter_is_accepted_whole(verifier):
    order_0 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    target = MarkovTarget(order_0.expand(VOCAB, VOCAB))
    law = emitted(target, PROMPT, paths(order_0.expand(3, VOCAB), 1), VERIFIERS[verifier])
    assert mean_accepted(law) == pytest.approx(3, abs=1e-9)


@pytest.mark.parametrize("verifier", ["token", "block", "multi-round", "traversal"])
def test_temperature_zero_emits_what_greedy_decoding_would(verifier):
    name = "drawn chain" if VERIFIERS[verifier].forks is False else "two distinct, then one"
    law = emitted(TARGET, PROMPT, TRUE[name], VERIFIERS[verifier], temperature=0.0)
    greedy = TARGET.greedy(PROMPT, 4)
    assert all(tokens == greedy[: len(tokens)] for tokens, chance in law.items() if chance > 0)
    assert len(law) > 1


@pytest.mark.parametrize("verifier", ["token", "block", "multi-round", "traversal"])
@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.8}, {"temperature": 0.6}], ids=str)
def test_temperature_and_filters_shape_the_law(verifier, options):
    rows = TARGET.table.reshape(-1, VOCAB).log()
    table = torch.stack([Sampling(**{"temperature": 1.0} | options).probs(row, []) for row in rows])
    law = emitted(TARGET, PROMPT, TRUE["drawn chain"], VERIFIERS[verifier], **options)
    assert error(MarkovTarget(table.reshape(TARGET.table.shape)), PROMPT, law, 4) < EXACT


def test_processors_get_the_history_of_each_node():
    def no_repeats(ids, logits):
        logits[0, ids[0, 2:]] = -torch.inf
        return logits

    for verifier in ("multi-round", "traversal"):
        law = emitted(
            TARGET,
            PROMPT,
            children(LAWS[:2], (2, 1)),
            VERIFIERS[verifier],
            processors=(no_repeats,),
        )
        # no token comes twice after the prompt, and the first token's law is the target's own
        assert all(len(set(tokens)) == len(tokens) for tokens, chance in law.items() if chance > 0)
        first = [sum(c for tokens, c in law.items() if tokens[0] == t) for t in range(VOCAB)]
        assert first == pytest.approx(TARGET.next_probs(PROMPT).tolist(), abs=EXACT)


# --- what is published, coded apart ---


def published_block(tree, logits, sampling, history):
    """Block verification word for word (Sun et al., Alg. 2): all coins thrown, the last counts."""
    target = [sampling.probs(row, history) for row in logits]
    length, weight, accepted, weights = len(tree) - 1, 1.0, 0, [1.0]
    for i in range(1, length + 1):
        token = tree.tokens[i]
        weight = min(1.0, weight * float(target[i - 1][token] / LAWS[i - 1][token]))
        weights.append(weight)
        if i == length:
            chance = weight
        else:
            gap = float((weight * target[i] - LAWS[i]).clamp(min=0).sum())
            chance = gap / (gap + 1 - weight) if gap + 1 - weight > 0 else 1.0
        accepted = i if sampling.coin(chance) else accepted
    if accepted == length:
        return Verdict(tuple(range(length + 1)), sampling.pick(target[-1]))
    rest = (weights[accepted] * target[accepted] - LAWS[accepted]).clamp(min=0)
    return Verdict(tuple(range(accepted + 1)), sampling.pick(rest))


def published_token(tree, logits, sampling, history):
    """Leviathan's rule: accept by the ratio, else draw from what the target has more of."""
    for i, token in enumerate(tree.tokens[1:]):
        target = sampling.probs(logits[i], history)
        if not sampling.coin(float(target[token] / LAWS[i][token])):
            rest = (target - LAWS[i]).clamp(min=0)
            return Verdict(tuple(range(i + 1)), sampling.pick(rest))
    return Verdict(tuple(range(len(tree))), sampling.pick(sampling.probs(logits[-1], history)))


def published_specinfer(tree, logits, sampling, history):
    """SpecInfer's rounds over two draws, repeats included (Alg. 2), at one depth."""
    wanted = sampling.probs(logits[0], history)
    for node in tree.draws.drawn:
        token = tree.tokens[node]
        if sampling.coin(float(wanted[token] / LAWS[0][token])):
            return Verdict((0, node), sampling.pick(sampling.probs(logits[node], history)))
        wanted = (wanted - LAWS[0]).clamp(min=0)
        wanted = wanted / wanted.sum()
    return Verdict((0,), sampling.pick(wanted))


@pytest.mark.parametrize(
    ("published", "verifier", "draft"),
    [
        (published_token, "token", paths(LAWS, 1)),
        (published_block, "block", paths(LAWS, 1)),
        (published_block, "traversal", paths(LAWS, 1)),
        (published_specinfer, "multi-round", children(LAWS[:1], (3,), Kind.INDEPENDENT)),
    ],
)
def test_a_rule_accepts_as_the_published_one_does(published, verifier, draft):
    ours = emitted(TARGET, PROMPT, draft, VERIFIERS[verifier])
    theirs = emitted(TARGET, PROMPT, draft, published)
    for tokens in ours.keys() | theirs.keys():
        assert ours.get(tokens, 0) == pytest.approx(theirs.get(tokens, 0), abs=EXACT)


def test_the_block_papers_example():
    # target (1/3, 2/3), draft (2/3, 1/3), two tokens: 10/9 by tokens, 11/9 by the block
    third = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    target, laws = MarkovTarget(third.expand(2, 2)), third.flip(0).expand(2, 2)
    means = [
        mean_accepted(emitted(target, (0,), paths(laws, 1), VERIFIERS[name]))
        for name in ("token", "block")
    ]
    assert means == pytest.approx([10 / 9, 11 / 9], abs=EXACT)


@pytest.mark.parametrize("seed", range(2))
def test_rules_accept_in_their_order(seed):
    target, laws = MarkovTarget(random_table(VOCAB, 2, seed=seed)), random_table(VOCAB, 1, 1, seed)

    def accepted(verifier, draft):
        return mean_accepted(emitted(target, PROMPT, draft, VERIFIERS[verifier]))

    chain, pair = paths(laws[:2], 1), children(laws[:2], (2, 1))
    assert accepted("block", chain) >= accepted("token", chain) - EXACT
    assert accepted("token", chain) >= accepted("match", chain) - EXACT
    assert accepted("traversal", pair) >= accepted("multi-round", pair) - EXACT
    assert accepted("traversal", pair) >= accepted("block", chain) - EXACT


# --- no rule can do better than optimal transport ---


def candidates(draft):
    """The law of the set of a tree's first tokens."""
    law = {}
    for chance, tree in outcomes(draft):
        drafted = frozenset(tree.tokens[node] for node in tree.below[0])
        law[drafted] = law.get(drafted, 0) + chance
    return law


def transport_bound(wanted, law):
    """The largest probability that the emitted token was drafted: over all sets H of tokens the
    least of 1 + P(H) - Q(candidates within H) (Strassen; Hu et al. 2502.18779)."""
    sets = itertools.chain.from_iterable(itertools.combinations(range(VOCAB), n) for n in range(4))
    return min(
        1 + sum(float(wanted[t]) for t in hall) - sum(c for s, c in law.items() if s <= set(hall))
        for hall in sets
    )


DEPTH_ONE = {
    "fixed": fixed((2,), (1,)),
    "one": paths(LAWS[:1], 1),
    "independent": children(LAWS[:1], (2,), Kind.INDEPENDENT),
    "distinct": children(LAWS[:1], (2,)),
    "hybrid": hybrid(LAWS[:1], (1,)),
}


@pytest.mark.parametrize("verifier", ["match", "multi-round", "traversal"])
@pytest.mark.parametrize("name", DEPTH_ONE)
def test_no_rule_beats_optimal_transport_and_some_reach_it(verifier, name):
    draft = DEPTH_ONE[name]
    accepted = mean_accepted(emitted(TARGET, PROMPT, draft, VERIFIERS[verifier]))
    bound = transport_bound(TARGET.next_probs(PROMPT), candidates(draft))
    assert accepted <= bound + EXACT
    if name == "fixed" or (name == "one" and verifier != "match"):
        assert accepted == pytest.approx(bound, abs=EXACT)


def test_the_bound_has_its_known_values():
    wanted = TARGET.next_probs(PROMPT)
    one = transport_bound(wanted, candidates(DEPTH_ONE["one"]))
    assert one == pytest.approx(float(torch.minimum(wanted, LAWS[0]).sum()), abs=EXACT)
    two = transport_bound(wanted, candidates(DEPTH_ONE["fixed"]))
    assert two == pytest.approx(float(wanted[2] + wanted[1]), abs=EXACT)


# --- mutants: drafts that are not what they say, and rules with one mistake ---


def favourites_called_draws(fates):
    """The most probable tokens, said to be drawn (S2D2 at temperature 0, CPS with a ratio)."""
    tokens = LAWS.argmax(-1).tolist()
    tree = TokenTree.from_branches(0, [Branch(tuple(tokens))])
    return draws_of(Kind.INDEPENDENT, LAWS, tree, range(1, len(tree)))


def chosen_of_two(fates):
    """Of two drawn paths the one that the target likes best, said to be the only one."""
    rows = [tuple(drawn(fates, law, 1, True)[0] for law in LAWS[:2]) for _ in range(2)]
    chances = dict(TARGET.law(PROMPT, 2))
    tree = TokenTree.from_branches(0, [Branch(max(rows, key=chances.__getitem__))])
    return draws_of(Kind.INDEPENDENT, LAWS, tree, range(1, len(tree)))


def sorted_draws(fates):
    """Two distinct draws, tried in the order of their probabilities."""
    tokens = sorted(drawn(fates, LAWS[0], 2, False), key=lambda token: -LAWS[0][token])
    tree = TokenTree.from_branches(0, [Branch((token,)) for token in tokens])
    return draws_of(Kind.DISTINCT, LAWS, tree, range(1, len(tree)))


def confident_draws(fates):
    """Distinct draws of which improbable ones are left out."""
    tokens = [token for token in drawn(fates, LAWS[0], 2, False) if LAWS[0][token] > 0.3]
    tree = TokenTree.from_branches(0, [Branch((token,)) for token in tokens])
    return draws_of(Kind.DISTINCT, LAWS, tree, range(1, len(tree)))


def other_law_told(fates):
    """Drawn at another temperature than the one told."""
    tree = paths((LAWS.log() / 0.5).softmax(-1), 1)(fates)
    return draws_of(Kind.INDEPENDENT, LAWS, tree, tree.draws.drawn)


def distinct_called_replaced(fates):
    """Draws without replacement, said to be independent."""
    tree = children(LAWS[:1], (2,))(fates)
    return draws_of(Kind.INDEPENDENT, LAWS, tree, tree.draws.drawn)


def shared_called_own(fates):
    """The draws of a depth are shared and not said to be."""
    tree = children(LAWS[:2], (2, 2), shared=True)(fates)
    return draws_of(Kind.DISTINCT, LAWS, tree, tree.draws.drawn)


def longest_of_independent_walks(tree, logits, sampling, history):
    """Every path is verified with coins of its own; the longest acceptance wins."""
    best = None
    for leaf in (node for node in range(len(tree)) if not tree.below[node]):
        path = tree.path_to(leaf)
        row = TokenTree.from_branches(0, [Branch(tree.tokens_on(path))])
        row = draws_of(Kind.INDEPENDENT, LAWS, row, range(1, len(row)))
        verdict = verify_by_rounds(row, logits[list(path)], sampling, history)
        if best is None or len(verdict.path) > len(best.path):
            best = Verdict(path[: len(verdict.path)], verdict.bonus)
    return best


def rounds(tree, logits, sampling, history, rest=left_over, laws=draws_below):
    """`verify_by_rounds`, open to mistakes."""
    path = [0]
    while True:
        wanted = sampling.probs(logits[path[-1]], history)
        for child, law in laws(tree, path[-1]):
            if sampling.coin(float(wanted[tree.tokens[child]]) / law.of(tree.tokens[child])):
                path.append(child)
                break
            wanted, _ = rest(wanted, 1.0, law)
        else:
            return Verdict(tuple(path), sampling.pick(wanted))


def nothing_left_out(*given):
    """What a rejected child showed is forgotten: the next is tried against the whole law."""
    return rounds(*given, rest=lambda wanted, weight, law: (wanted, weight))


def token_struck_out(*given):
    """A rejected child's token is struck out and no more, as if it had been chosen, not drawn."""

    def rest(wanted, weight, law):
        rejected = law.tokens[law.probs.argmax()]
        left = wanted.clone().index_fill_(0, rejected[None], 0)
        return left / left.sum(), weight

    return rounds(*given, rest=rest)


def law_not_renewed(*given):
    """Draws without replacement, each tried by the law of the first."""

    def laws(tree, node):
        return ((child, tree.draws.law(node)) for child, _ in draws_below(tree, node))

    return rounds(*given, laws=laws)


def traversal(tree, logits, sampling, history, reweigh):
    """`verify_by_traversal`, open to mistakes."""

    def visit(path, weight):
        wanted = sampling.probs(logits[path[-1]], history)
        for child, law in draws_below(tree, path[-1], repeats=False):
            token = tree.tokens[child]
            chance = min(1.0, weight * float(wanted[token]) / law.of(token))
            if (verdict := visit((*path, child), chance)) is not None:
                return verdict
            wanted, weight = reweigh(wanted, weight, law)
        if sampling.coin(weight) or len(path) == 1:
            return Verdict(path, sampling.pick(wanted))
        return None

    return visit((0,), 1.0)


def weight_kept(*given):
    """A node whose child was rejected keeps its weight."""
    return traversal(
        *given, lambda wanted, weight, law: (left_over(wanted, weight, law)[0], weight)
    )


def law_kept(*given):
    """A node whose child was rejected draws from its whole law."""
    return traversal(
        *given, lambda wanted, weight, law: (wanted, left_over(wanted, weight, law)[1])
    )


def weight_forgotten(*given):
    """What is left is counted as if the node had been sure."""
    return traversal(
        *given,
        lambda wanted, weight, law: (
            left_over(wanted, 1.0, law)[0],
            left_over(wanted, weight, law)[1],
        ),
    )


MUTANTS = [
    (favourites_called_draws, VERIFIERS["token"]),
    (favourites_called_draws, VERIFIERS["block"]),
    (children(LAWS[:1], (2,), Kind.INDEPENDENT), longest_of_independent_walks),
    (chosen_of_two, VERIFIERS["token"]),
    (chosen_of_two, VERIFIERS["block"]),
    (sorted_draws, VERIFIERS["multi-round"]),
    (sorted_draws, VERIFIERS["traversal"]),
    (confident_draws, VERIFIERS["multi-round"]),
    (confident_draws, VERIFIERS["traversal"]),
    (other_law_told, VERIFIERS["token"]),
    (other_law_told, VERIFIERS["block"]),
    (distinct_called_replaced, VERIFIERS["multi-round"]),
    (shared_called_own, VERIFIERS["traversal"]),
    (children(LAWS[:1], (2,)), nothing_left_out),
    (children(LAWS[:1], (2,)), token_struck_out),
    (children(LAWS[:1], (2,)), law_not_renewed),
    (paths(LAWS, 1), weight_kept),
    (paths(LAWS, 1), law_kept),
    (paths(random_table(VOCAB, 1, 0.5, 7), 1), weight_forgotten),
]


@pytest.mark.parametrize(("draft", "rule"), MUTANTS)
def test_a_mutant_is_found_out(draft, rule):
    law = emitted(TARGET, PROMPT, draft, rule)
    assert sum(law.values()) == pytest.approx(1, abs=EXACT)
    assert error(TARGET, PROMPT, law, 4) > WRONG


LIARS = dict.fromkeys(draft for draft, rule in MUTANTS if rule in VERIFIERS.values())


@pytest.mark.parametrize("draft", LIARS)
def test_match_is_exact_whatever_a_tree_says_of_itself(draft):
    assert error(TARGET, PROMPT, emitted(TARGET, PROMPT, draft, MATCH), 4) < EXACT


# --- what is refused, and what is lossy ---


def refused(verifier, name):
    fates = next(outcomes(lambda fates: (fates, TRUE[name](fates))))[1]
    tree = fates[1]
    with pytest.raises(ValueError, match=f"verifier '{verifier}'") as refusal:
        VERIFIERS[verifier](tree, torch.zeros(len(tree), VOCAB), Sampling(1.0), PROMPT)
    return str(refusal.value)


@pytest.mark.parametrize("verifier", ["block", "traversal"])
@pytest.mark.parametrize("name", SHARED)
def test_bottom_up_rules_refuse_shared_draws(verifier, name):
    assert "share draws; choose multi-round or match" in refused(verifier, name)


@pytest.mark.parametrize(("verifier", "other"), [("token", "multi-round"), ("block", "traversal")])
@pytest.mark.parametrize("name", ["fixed tree", "two distinct, then one", "hybrid"])
def test_rules_for_chains_refuse_forks(verifier, other, name):
    assert f"takes chains only and the tree has forks; choose {other}" in refused(verifier, name)


def test_a_lossy_verifier_must_be_allowed():
    for name in ("typical", "near-best"):
        with pytest.raises(ValueError, match=f"'{name}' is lossy: .* allow it with --allow-lossy"):
            verifier_named(name)
        assert verifier_named(name, allow_lossy=True) is VERIFIERS[name]
    with pytest.raises(ValueError, match="unknown verifier 'best'; choose one of match, token, bl"):
        verifier_named("best", allow_lossy=True)
    assert all(verifier_named(name).lossless for name in VERIFIERS if name not in LOSSY)


LOSSY = ("typical", "near-best")


@pytest.mark.parametrize("verifier", LOSSY)
def test_the_lossy_verifiers_are(verifier):
    law = emitted(TARGET, PROMPT, TRUE["fixed tree"], VERIFIERS[verifier])
    assert error(TARGET, PROMPT, law, 4) > WRONG


def test_typical_in_greedy_decoding_is_match():
    law = emitted(TARGET, PROMPT, TRUE["fixed tree"], VERIFIERS["typical"], temperature=0.0)
    assert law == emitted(TARGET, PROMPT, TRUE["fixed tree"], MATCH, temperature=0.0)


def test_typical_tokens_by_hand():
    # entropy 0.802: 0.3 e^-0.802 = 0.135 > 0.09; at entropy 2.303 it is 0.03
    law = torch.tensor([0.7, 0.2, 0.095, 0.005], dtype=torch.float64)
    assert typical(law).tolist() == [True, True, True, False]
    flat = torch.full((10,), 0.1, dtype=torch.float64)
    assert typical(flat).all()
    spiky = torch.cat(
        [torch.tensor([0.3]), torch.full((35,), 0.02)]
    ).double()  # 0.3 e^-3.10 = 0.0135
    assert typical(spiky).all()


def test_near_the_best_by_hand():
    law = torch.tensor([0.5, 0.2, 0.18, 0.12], dtype=torch.float64)
    assert near_the_best(law).tolist() == [True, True, False, False]  # 0.2 > 0.5 / e > 0.18
    assert near_the_best(law, distance=1.1).tolist() == [True, True, True, False]
    assert near_the_best(law, best=2, distance=9.0).tolist() == [True, True, False, False]
    assert near_the_best(law, best=1).tolist() == [True, False, False, False]


def test_a_lossy_verifier_takes_the_longest_path_that_passes():
    # nodes: 1 = "1", 2 = "1 0", 3 = "2", 4 = "2 1"
    tree = TokenTree.from_branches(0, [Branch((1, 0)), Branch((2, 1))])
    laws = torch.tensor([[0.1, 0.4, 0.5], [0.9, 0.05, 0.05], [0, 0, 1], [0.6, 0.3, 0.1], [1, 0, 0]])
    verdict = VERIFIERS["near-best"](tree, laws.log(), Sampling(), [0])
    assert verdict == Verdict((0, 1, 2), bonus=2)  # both paths pass: 0.4 · 0.9 > 0.5 · 0.3
    # 0.05 is far from 0.9: only the path "2 1" stays
    laws[1] = torch.tensor([0.05, 0.9, 0.05])
    assert VERIFIERS["near-best"](tree, laws.log(), Sampling(), [0]) == Verdict((0, 3, 4), bonus=0)


# --- trees and their draws ---


def test_a_cut_tree_keeps_its_draws():
    # three paths over depths 1 and 2: "2 0", "2 1", "2 0" again
    tree = TokenTree.from_branches(0, [Branch((2, 0)), Branch((2, 1))])
    whole = draws_of(Kind.INDEPENDENT, LAWS, tree, (1, 2, 1, 3, 1, 2))
    cut = whole.shallow(1)
    assert (cut.tokens, cut.draws.drawn, cut.draws.rows) == ((0, 2), (1, 1, 1), (0, 1))
    assert cut.draws.kind is Kind.INDEPENDENT
    below = [(child, law.probs.tolist()) for child, law in draws_below(cut, 0)]
    assert below == [(1, LAWS[0].tolist())] * 3
    assert [child for child, _ in draws_below(cut, 0, repeats=False)] == [1]


def test_a_cut_tree_is_still_exact():
    draft = children(LAWS[:2], (2, 1))
    for verifier in ("multi-round", "traversal"):
        law = emitted(TARGET, PROMPT, lambda fates: draft(fates).shallow(1), VERIFIERS[verifier])
        assert max(map(len, law)) == 2
        assert error(TARGET, PROMPT, law, 3) < EXACT


def test_laws_of_later_draws_leave_out_earlier_ones():
    tree = TokenTree.from_branches(0, [Branch((2,)), Branch((0,)), Branch((1,))])
    law = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    distinct = draws_of(Kind.DISTINCT, law, tree, (1, 2, 3))
    found = [law.probs.tolist() for _, law in draws_below(distinct, 0)]
    assert found == [
        pytest.approx(expected)
        for expected in ([0.5, 0.2, 0.3], [5 / 7, 2 / 7, 0.0], [0.0, 1.0, 0.0])
    ]
    mixed = draws_of(Kind.HYBRID, law, tree, (2, 3))  # token 2 was chosen
    found = [(law.tokens.tolist(), law.probs.tolist()) for _, law in draws_below(mixed, 0)]
    assert found[0] == ([2], [1.0])
    assert found[1][1] == pytest.approx([5 / 7, 2 / 7, 0.0])
    assert found[2][1] == pytest.approx([0.0, 1.0, 0.0])


def test_every_way_is_gone_once():
    def two_coins(fates):
        return fates.choose([0.25, 0.75]), fates.choose([1.0, 0.0]), fates.choose([0.5, 0.5])

    found = {result: chance for chance, result in outcomes(two_coins)}
    assert found == {(0, 0, 0): 0.125, (0, 0, 1): 0.125, (1, 0, 0): 0.375, (1, 0, 1): 0.375}
    assert Fated(1.0).draw(torch.zeros(3), []) == 0
