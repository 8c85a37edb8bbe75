"""More prompts from the given ones, for a target's answers to learn from.

    python scripts/gpu/prompts.py PROMPTS.jsonl EVAL_FOLDER OUT.jsonl [--seed 0] [--limit N]

Two of three lines are for greedy answers: every prompt once, half of them with a second turn, and
every prompt in other words once. Each third line is a prompt again, for a sampled answer: give
`--temperatures 0,0,0.8,0,0,1.0` to `d2sd regenerate`. Any beginning of OUT is mixed like the whole.
A prompt that shares a text or a long sentence with an evaluation suite is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
WAYS = (
    "Answer in one short paragraph.",
    "Explain it step by step.",
    "Give an example, too.",
    "Answer as a list of points.",
    "Keep it simple enough for a beginner.",
    "First say what is asked, then answer.",
)
FOLLOW_UPS = {
    "math": (
        "Check your answer by working it out in another way.",
        "Write the solution again with one sentence for each step.",
        "Which step of your solution is easiest to get wrong, and why?",
        "Make up a similar question with other numbers and solve it.",
    ),
    "code": (
        "Explain your answer line by line.",
        "Show how to test it.",
        "What could go wrong there, and how would you handle it?",
        "Write it again in another programming language.",
    ),
    "chat": (
        "Say the same in simpler words.",
        "Which of these points matters most, and why?",
        "Turn your answer into a short plan with five steps.",
        "Write a short email to a friend that tells this.",
        "What would someone say who disagrees?",
    ),
}
LONG = 40
"""Letters from which on a sentence shared with an evaluation prompt is no chance."""


@dataclass(frozen=True)
class Prompt:
    """A conversation to be held: what it is about, and the user's turns."""

    kind: str
    turns: tuple[str, ...]


class Forbidden:
    """Digests of all texts of the evaluation suites and of their long sentences."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._digests = {digest for text in texts for digest in digests(text)}

    @classmethod
    def of(cls, folder: Path) -> Forbidden:
        """Those of every suite in a folder. ValueError where there is none."""
        files = sorted(folder.glob("*.jsonl"))
        if not files:
            raise ValueError(f"{folder} holds no suites; give the folder of the evaluation files")
        return cls(turn for file in files for line in _lines(file) for turn in line["turns"])

    def holds(self, prompt: Prompt) -> bool:
        """Whether a turn of the prompt, or a long sentence in it, is one of theirs."""
        return any(digest in self._digests for turn in prompt.turns for digest in digests(turn))


def digests(text: str) -> Iterator[str]:
    """Of the text and of its long sentences, whatever their case, spaces and closing request."""
    plain = text.replace(BOXED, " ")
    for part in (plain, *re.split(r"[.!?\n]", plain)):
        words = " ".join(re.findall(r"\w+", part.lower()))
        if words and (part is plain or len(words) >= LONG):
            yield hashlib.sha256(words.encode()).hexdigest()


def built(given: list[Prompt], forbidden: Forbidden, seed: int) -> list[Prompt]:
    """The prompts to answer: greedy, greedy, sampled, and so on. No greedy one comes twice."""
    rng = random.Random(seed)

    def allowed(prompts: Iterable[Prompt]) -> list[Prompt]:
        return [prompt for prompt in prompts if not forbidden.holds(prompt)]

    clean = allowed(given)
    greedy = [*(_continued(prompt, rng) for prompt in clean), *(_varied(p, rng) for p in clean)]
    greedy = list(dict.fromkeys(allowed(greedy)))
    rng.shuffle(greedy)
    sampled = allowed(_continued(rng.choice(clean), rng) for _ in range(len(greedy) // 2))
    return [
        prompt
        for number, warm in enumerate(sampled)
        for prompt in (greedy[2 * number], greedy[2 * number + 1], warm)
    ]


def _continued(prompt: Prompt, rng: random.Random) -> Prompt:
    """With a second turn, one time in two."""
    if rng.random() < 0.5:
        return prompt
    follow_ups = FOLLOW_UPS.get(prompt.kind, FOLLOW_UPS["chat"])
    return Prompt(prompt.kind, (*prompt.turns, rng.choice(follow_ups)))


def _varied(prompt: Prompt, rng: random.Random) -> Prompt:
    """The same question with another request: greedy answers then differ from the plain one's."""
    text, way = prompt.turns[0], rng.choice(WAYS)
    if prompt.kind == "math" and BOXED not in text:
        way = BOXED
    text = text.replace(BOXED, "").strip()
    return Prompt(prompt.kind, (f"{text}\n{way}",))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, each text once."""
    return list(dict.fromkeys(Prompt(line["kind"], (line["prompt"],)) for line in _lines(path)))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().split("\n") if line)


def main(words: list[str] | None = None) -> int:
    """The command line; 2 for a user's error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("prompts", type=Path)
    parser.add_argument("suites", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="the first N lines")
    given = parser.parse_args(words)
    try:
        found = built(read_prompts(given.prompts), Forbidden.of(given.suites), given.seed)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with given.out.open("w") as file:
        for number, prompt in enumerate(found[: given.limit]):
            line = {"id": number, "kind": prompt.kind, "turns": prompt.turns}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stderr.write(f"{given.out}: {len(found[: given.limit])} prompts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
