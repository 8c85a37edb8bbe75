"""What only a GPU can show, as small JSON files; parts whose file is there already are skipped.

    python scripts/gpu/speed.py FOLDER [--model smollm2-135m] [--device cuda] [--tiny]
        [--first DRAFTER] [--second DRAFTER] [--parts kernel,costs,policies]

kernel.json: the cascade against one masked call and against its bandwidth floor, by context length.
costs-NAME.json: seconds of a target's pass by nodes and context, as a CUDA graph; those of Qwen3
have random weights, so they tell of cost alone. policies.json: every policy over the same prompts,
plain decoding with CUDA graphs first, with the time of each stage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from d2sd.bench.prompts import read_prompts
from d2sd.cli.answering import answer, warm_up
from d2sd.generate import Request
from d2sd.journal import write_record
from d2sd.networks import Networks
from d2sd.provenance import provenance
from d2sd.session import ModelChoice, Session, open_session
from d2sd.target.graphs import GraphedPass
from d2sd.target.hf import HFTarget
from d2sd.tuning.measure import Scope, measure_costs
from kernel import SHAPES, Measuring, kernel

SAMPLE = Path(__file__).parents[2] / "src/d2sd/bench/sample"
POLICIES = "none,block,dual:branches=4,best-first:budget=64,merged:budget=64,planned"
QWEN = {  # hidden size, feed-forward width, layers; heads of both as in SHAPES
    "qwen3-4b": (2560, 9728, 36),
    "qwen3-8b": (4096, 12288, 36),
}
QWEN_VOCAB = 151_936


def costs(measuring: Measuring) -> Iterator[tuple[str, dict[str, object]]]:
    """Seconds of a pass by nodes and context: the model's own, and random ones of Qwen3's shapes.

    They come one by one, since a large model takes its time.
    """
    limits = (64, 128) if measuring.tiny else (64, 1024, 4096)
    scope = Scope(limits, (1, 8) if measuring.tiny else Scope.nodes, repeats=3, steps=4)
    for name in (measuring.model, *QWEN):
        random = name in QWEN
        target = _random_target(name, measuring) if random else _graphed(measuring, "none").target
        table = measure_costs(target, Networks(), scope)
        yield Path(name).name, {"random weights": random, "costs": table.to_json()}
        del target


def _random_target(name: str, measuring: Measuring) -> HFTarget:
    """A Qwen3 of this shape, all its weights random, made where it runs."""
    hidden, wide, layers = (64, 128, 2) if measuring.tiny else QWEN[name]
    heads, kv_heads, width = (4, 2, 16) if measuring.tiny else SHAPES["qwen3-4b"]
    config = transformers.Qwen3Config(
        vocab_size=97 if measuring.tiny else QWEN_VOCAB,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        max_position_embeddings=32768,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(measuring.dtype)
    try:
        with measuring.device:
            model = transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    target = HFTarget(model)
    target.run = GraphedPass(model, ())
    return target


def _graphed(measuring: Measuring, *policies: str) -> Session:
    """A session whose target passes are CUDA graphs (on a CPU the same passes without one)."""
    choice = ModelChoice(
        measuring.model,
        measuring.first,
        measuring.second,
        dtype=str(measuring.dtype).removeprefix("torch."),
        device=measuring.device.type,
        compiled=False,
    )
    session = open_session(choice, policies)
    session.target.run = GraphedPass(session.model, session.target.taps)
    return session


def policies(measuring: Measuring) -> dict[str, object]:
    """Tokens a second, acceptance length and the time of each stage, policy by policy."""
    names = POLICIES.split(",")
    session = _graphed(measuring, *names)
    requests = [
        Request(
            session.chat_prompt([{"role": "user", "content": prompt.turns[0]}]),
            max_new_tokens=8 if measuring.tiny else 128,
            stop_tokens=session.stop_tokens,
        )
        for suite in sorted(SAMPLE.glob("*.jsonl"))[: 1 if measuring.tiny else None]
        for prompt in read_prompts(suite, 1 if measuring.tiny else 3)
    ]
    rows = [_policy(session, name, requests) for name in names]
    return {"greedy": True, "graphs": "target passes", "policies": rows}


def _policy(session: Session, name: str, requests: list[Request]) -> dict[str, object]:
    warm_up(session, name, requests[0])
    found = [answer(session, name, request) for request in requests]
    tokens = sum(each.generation.new_tokens for each in found)
    steps = sum(each.generation.steps for each in found)
    spent = sum(each.generation.seconds for each in found)
    parts = [asdict(each.split)["seconds"] for each in found]
    return {
        "policy": name,
        "tokens": tokens,
        "steps": steps,
        "seconds": spent,
        "tokens_per_second": tokens / spent,
        "acceptance_length": tokens / steps,
        "stages": {part: sum(each[part] for each in parts) for part in parts[0]},
    }


def measured(folder: Path, parts: list[str], measuring: Measuring) -> None:
    """Measure what isn't in the folder yet, each part written as soon as it is done."""
    origin = {**provenance(measuring.device, 0), "tiny": measuring.tiny}
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"kernel": kernel, "policies": policies}
    for part in parts:
        file = folder / f"{part}.json"
        if part in whole and not file.exists():
            write_record(file, {**whole[part](measuring), "run": origin})
        if part == "costs" and not (folder / f"costs-{list(QWEN)[-1]}.json").exists():
            for name, table in costs(measuring):
                write_record(folder / f"costs-{name}.json", {**table, "run": origin})


def main(words: list[str] | None = None) -> int:
    """The command line; 2 for a user's error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: says nothing of speed")
    parser.add_argument("--first")
    parser.add_argument("--second")
    parser.add_argument("--parts", default="kernel,policies,costs")
    given = parser.parse_args(words)
    name = "proving-ground" if given.tiny else given.model
    try:
        device = ModelChoice(device=given.device).torch_device()
        measuring = Measuring(device, name, given.first, given.second, given.tiny)
        measured(given.folder, given.parts.split(","), measuring)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for file in sorted(given.folder.glob("*.json")):
        sys.stdout.write(f"{file}: {json.loads(file.read_text())['run']['device']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
