"""S2D2 on a small arithmetic suite: forwards, widths and accuracy of a block-diffusion model.

python docs/results/blockwise.py questions RUN
d2sd regenerate RUN/learn.jsonl --out RUN/answers.jsonl --max-new-tokens 40 --temperatures 0,0,0.7
d2sd blockwise adapt RUN/answers.jsonl --out RUN/shifted --shifted --steps 160
python docs/results/blockwise.py measure RUN > docs/results/blockwise.json

Counts only, greedy, float32; no times are taken.
"""

import itertools
import json
import random
import re
import sys
from pathlib import Path

import torch

from d2sd.blockwise.answering import BlockRequest, answer_by_blocks
from d2sd.blockwise.checkpoint import load_block_model
from d2sd.blockwise.decoding import BlockChoice
from d2sd.blockwise.model import BlockDiffusionLM
from d2sd.models.resolve import resolve
from d2sd.provenance import provenance
from d2sd.sampling import Sampling
from d2sd.session import load_tokenizer
from d2sd.target.load import load_model
from d2sd.text import plain_text
from d2sd.wording import chat_ids, end_tokens

SUITE, LEARN = 60, 900
ASKED, LONGEST = 20, 40
CHOICES = {
    "plain": BlockChoice("plain"),
    "exact": BlockChoice("exact"),
    "denoise, static": BlockChoice("denoise", remasking="static"),
    "denoise, dynamic": BlockChoice("denoise"),
    "routed, always": BlockChoice("routed", routing="always"),
    "routed, min-span:span=4": BlockChoice("routed", routing="min-span:span=4"),
    "routed, score": BlockChoice("routed"),
    "routed, hysteresis": BlockChoice("routed", routing="hysteresis"),
    "routed, bandit": BlockChoice("routed", routing="bandit"),
}
CAUSAL = "the causal model, plain"
WORDINGS = {
    "+": (
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "Tom has {a} apples and gets {b} more. How many apples does Tom have now?",
        "A bus carries {a} people and {b} more get on. How many people are on the bus?",
    ),
    "-": (
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "Anna has {a} coins and gives away {b}. How many coins does Anna have left?",
        "There are {a} birds in a tree and {b} fly away. How many birds stay?",
    ),
}


def questions() -> list[dict]:
    """Every wording with every pair of small numbers, shuffled; a pair is in one part only."""
    pairs = [(a, b) for a in range(2, 21) for b in range(2, 21)]
    rng = random.Random(0)
    rng.shuffle(pairs)
    asked = []
    for sign, (a, b) in itertools.product(WORDINGS, pairs):
        if sign == "-" and a <= b:
            continue
        for wording in WORDINGS[sign]:
            held_out = pairs.index((a, b)) < 25
            truth = a + b if sign == "+" else a - b
            line = {"turns": [wording.format(a=a, b=b)], "answer": truth, "suite": held_out}
            asked.append(line)
    rng.shuffle(asked)
    return asked


def write_questions(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    every = questions()
    suite = [q for q in every if q["suite"]][:SUITE]
    learn = [q for q in every if not q["suite"]][:LEARN]
    for name, asked in (("suite", suite), ("learn", learn)):
        lines = [
            json.dumps({"id": f"{name}-{number}", "turns": q["turns"], "answer": q["answer"]})
            for number, q in enumerate(asked)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def measured(lm: BlockDiffusionLM, choice: BlockChoice, asked: list[dict], tokenizer) -> list[dict]:
    """What every question took, and what was said."""
    stops = end_tokens(tokenizer, lm._model.generation_config)
    found = []
    for question in asked:
        lm.read([0])  # an empty cache: the counts do not depend on what was asked before
        prompt = chat_ids(tokenizer, "", [{"role": "user", "content": question["turns"][0]}])
        sampling = Sampling(rng=torch.Generator().manual_seed(0))
        answer = answer_by_blocks(lm, BlockRequest(prompt, sampling, LONGEST, stops), choice)
        text = plain_text(tokenizer, answer.tokens)
        numbers = re.findall(r"\d+", text)
        found.append(
            {
                "right": bool(numbers) and int(numbers[-1]) == question["answer"],
                "tokens": list(answer.tokens),
                "widths": list(answer.widths),
                "steps": [[s.drafted, s.verified, s.accepted, s.committed] for s in answer.steps],
                "text": text,
            }
        )
    return found


def row(name: str, answers: list[dict], plain: list[dict]) -> list[str]:
    """One line of the table."""
    tokens = sum(len(a["tokens"]) for a in answers)
    widths = [width for a in answers for width in a["widths"]]
    steps = [step for a in answers for step in a["steps"]]
    verified = [step for step in steps if step[1]]
    accepted = sum(step[2] for step in verified) / max(len(verified), 1)
    return [
        name,
        f"{tokens / len(widths):.2f}",
        f"{sum(widths) / len(widths):.1f}",
        f"{sum(widths) / tokens:.1f}",
        f"{100 * len(verified) / len(steps):.0f} %",
        f"{accepted:.2f}" if verified else "–",
        f"{sum(a['right'] for a in answers)} of {len(answers)}",
        f"{sum(a['tokens'] == b['tokens'] for a, b in zip(answers, plain, strict=True))}",
    ]


COLUMNS = [
    "decoding",
    "tokens a forward",
    "mean width",
    "rows a token",
    "steps verified",
    "accepted of those",
    "right",
    "as plain",
]


def measure(folder: Path) -> None:
    """Print the counts of every way of decoding, as JSON."""
    torch.set_num_threads(1)
    asked = [json.loads(line) for line in (folder / "suite.jsonl").read_text().splitlines()][:ASKED]
    loaded = load_block_model(str(folder / "shifted"), torch.float32)
    source = resolve("smollm2-135m")
    tokenizer = load_tokenizer(source)
    answers = {}
    for name, choice in CHOICES.items():
        lm = BlockDiffusionLM(loaded.model, loaded.settings)
        answers[name] = measured(lm, choice, asked, tokenizer)
        sys.stderr.write(f"{name}\n")
    causal = BlockDiffusionLM(load_model(source, torch.float32), loaded.settings)
    answers[CAUSAL] = measured(causal, BlockChoice("plain"), asked, tokenizer)
    log = (folder / "shifted.work" / "training.jsonl").read_text().splitlines()
    plain = answers["plain"]
    result = {
        "questions": [question["turns"][0] for question in asked],
        "training": [json.loads(line) for line in log],
        "answers": answers,
        "tables": {
            "blockwise": {
                "columns": COLUMNS,
                "rows": [row(name, found, plain) for name, found in answers.items()],
            }
        },
        "run": provenance(torch.device("cpu"), 0),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    {"questions": write_questions, "measure": measure}[sys.argv[1]](Path(sys.argv[2]))
