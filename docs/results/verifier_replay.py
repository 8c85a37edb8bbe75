"""Verifiers on equal drafts: how many tokens each may expect to emit, suite by suite.

python docs/results/verifier_replay.py ../shared/data/eval docs/results/verifier-replay.json

A killed run goes on: prompts whose counts the file has are not decoded again.

At every step of sampled decoding the drafter draws and the target scores once, and each verifier is
asked what it would do with that tree: the mean over its own coins is summed exactly, outcome by
outcome. The text goes on by `match`. SmolLM2-135M-Instruct and its shipped drafters; counts only.
"""

import itertools
import json
import random
import sys
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from d2sd.bench.suites import SUITES, load_suite
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session
from d2sd.verify.verifiers import VERIFIERS

TEMPERATURES = (0.5, 1.0, 1.5)
TOKENS, REPEATS = 40, 2000
PROMPTS = {"drawn": 12, "drawn-tree:budget=24": 4, "best-first:budget=24": 4}
TREES = {
    "drawn": ("match", "token", "block"),
    "drawn-tree:budget=24": ("match", "multi-round", "traversal"),
    "best-first:budget=24": ("match", "traversal"),
}
PAIRS = (
    ("drawn", "block", "token"),
    ("drawn", "block", "match"),
    ("drawn-tree:budget=24", "traversal", "multi-round"),
    ("drawn-tree:budget=24", "traversal", "match"),
    ("best-first:budget=24", "traversal", "match"),
)


@dataclass(frozen=True)
class Foreseen(Sampling):
    """Coins that fall as `script` says, and heads after it; what they would have cost is kept."""

    script: tuple = ()
    thrown: list = field(default_factory=list)
    laws: dict = field(default_factory=dict)

    def coin(self, chance):
        place = len(self.thrown)
        heads = self.script[place] if place < len(self.script) else chance > 0
        self.thrown.append((heads, min(chance, 1.0)))
        return heads

    def pick(self, weights):
        return 0

    def probs(self, logits, history):
        if logits.data_ptr() not in self.laws:  # a node's law, whatever the coins
            self.laws[logits.data_ptr()] = super().probs(logits, history)
        return self.laws[logits.data_ptr()]


def by_coins(rule, tree, logits, temperature, history):
    """Mean tokens emitted by a rule that throws coins."""
    mean, scripts, laws = 0.0, [()], {}
    while scripts:
        script = scripts.pop()
        coins = Foreseen(temperature, script=script, laws=laws)
        emitted = len(rule(tree, logits, coins, history).path)
        fell = [heads for heads, _ in coins.thrown]
        chances = [chance if heads else 1 - chance for heads, chance in coins.thrown]
        mean += prod(chances) * emitted
        for place in range(len(script), len(fell)):
            if chances[place] < 1:
                scripts.append((*fell[:place], not fell[place]))
    return mean


def by_draws(tree, logits, temperature, history):
    """The same of `match`: the nodes' chances to be drawn, and the token after them."""
    sampling, chances = Sampling(temperature), [1.0] + [0.0] * (len(tree) - 1)
    for node, children in enumerate(tree.below):
        law = sampling.probs(logits[node], history) if children else None
        for child in children:
            chances[child] = chances[node] * float(law[tree.tokens[child]])
    return sum(chances)


def means(tree, logits, temperature, history, names):
    return {
        name: by_draws(tree, logits, temperature, history)
        if name == "match"
        else by_coins(VERIFIERS[name], tree, logits, temperature, history)
        for name in names
    }


def steps_of(session, prompt, policy, temperature, seed):
    drafter = session.drafter(policy, temperature)
    sampling = Sampling(temperature, rng=torch.Generator().manual_seed(seed))
    context = session.target.prefill(prompt)
    while (
        len(context.tokens) < len(prompt) + TOKENS and context.tokens[-1] not in session.stop_tokens
    ):
        tree = drafter.draft(context)
        scores = session.target.score(context, tree)
        given = scores.tree, scores.logits.clone(), temperature, context.tokens
        yield means(*given, TREES[policy])
        verdict = VERIFIERS["match"](scores.tree, scores.logits, sampling, context.tokens)
        context = session.target.commit(context, scores, verdict)


def measured(session, suites, folder, file):
    """Per policy, temperature and suite each prompt's sums over its steps, and their number."""
    known = json.loads(file.read_text())["counts"] if file.exists() else {}
    for policy, temperature, suite in itertools.product(TREES, TEMPERATURES, suites):
        found = known.setdefault(f"{policy} at {temperature:g}: {suite}", [])
        prompts = load_suite(suite, PROMPTS[policy], folder)
        for seed, prompt in list(enumerate(prompts))[len(found) :]:
            ids = session.chat_prompt([{"role": "user", "content": prompt.turns[0]}])
            steps = list(steps_of(session, ids, policy, temperature, seed))
            sums = {name: sum(step[name] for step in steps) for name in TREES[policy]}
            found.append({"steps": len(steps), **sums})
            write(session, known, file)
    return known


def write(session, known, file):
    facts = {"run": session.provenance(0), "counts": known}
    file.write_text(json.dumps(facts, ensure_ascii=False) + "\n")


def length(prompts, name):
    return sum(p[name] for p in prompts) / sum(p["steps"] for p in prompts)


def gain(prompts, ours, theirs, rng):
    """Our mean over theirs, and 95 % of it over prompts; both have the same drafts."""
    drawn = sorted(
        length(some, ours) / length(some, theirs)
        for some in (rng.choices(prompts, k=len(prompts)) for _ in range(REPEATS))
    )
    middle = length(prompts, ours) / length(prompts, theirs)
    return f"{middle:.3f} ({drawn[REPEATS // 40]:.3f} to {drawn[-REPEATS // 40]:.3f})"


def tables(found):
    rng = random.Random(0)

    def of(policy, temperature, suite):
        return found[f"{policy} at {temperature:g}: {suite}"]

    def every(policy, temperature):
        return [p for suite in SUITES for p in of(policy, temperature, suite)]

    def cell(temperature, suite):
        prompts = of("drawn", temperature, suite)
        return " / ".join(f"{length(prompts, name):.3f}" for name in ("token", "block"))

    heads = [f"T = {t:g}" for t in TEMPERATURES]
    return {
        "block-and-token": {
            "columns": ["suite", *heads],
            "rows": [[s, *(cell(t, s) for t in TEMPERATURES)] for s in SUITES],
        },
        "equal-drafts": {
            "columns": ["drafts", "verifiers", *heads],
            "rows": [
                [policy, f"{ours} / {theirs}"]
                + [gain(every(policy, t), ours, theirs, rng) for t in TEMPERATURES]
                for policy, ours, theirs in PAIRS
            ],
        },
        "lengths": {
            "columns": ["drafts", "verifier", *heads],
            "rows": [
                [
                    policy,
                    name,
                    *(f"{length(every(policy, t), name):.2f}" for t in TEMPERATURES),
                ]
                for policy, names in TREES.items()
                for name in names
            ],
        },
    }


torch.set_num_threads(1)
folder, file = Path(sys.argv[1]), Path(sys.argv[2])
session = open_session(ModelChoice("smollm2-135m", dtype="bfloat16", device="cpu"), list(TREES))
found = measured(session, SUITES, folder, file)
facts = json.loads(file.read_text())
file.write_text(json.dumps(facts | {"tables": tables(found)}, ensure_ascii=False) + "\n")
