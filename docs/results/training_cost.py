"""What training a drafter costs, in floating-point operations and hours. Prints one JSON object.

python docs/results/training_cost.py training.jsonl > docs/results/training-cost.json

`training.jsonl` is a log of `d2sd train` for SmolLM2-135M on the CPU of this machine. The share of
the machine's own matrix speed that the trainer reached is measured here, and then carried over to
a GPU's data sheet: the GPU hours are worked out, not measured.
"""

import itertools
import json
import sys
import time

import torch

H100 = 989e12
"""Dense bfloat16 operations a second, by the data sheet of an H100 SXM."""

EPOCHS, ANSWERS, LENGTH, ANCHORS = 6, 100_000, 1024, 256
"""A modest run: the D²SD authors use 6 epochs, 512 anchors in up to 3 072 tokens."""


def drafter(hidden, width, layers, query, key, taps):
    """(parameters of the layers, of `fc`)."""
    attention = hidden * (2 * query + 2 * key)
    return layers * (attention + 3 * hidden * width), taps * hidden * hidden


def per_slot(layers, head):
    """A pass forwards and back; the head is frozen, so its own gradient is not needed."""
    return 6 * layers + 4 * head


def per_token(fc, layers, kv_share):
    """Reading a context row: `fc` and every layer's key and value projections."""
    return 6 * (fc + layers * kv_share)


SHAPES = {
    # hidden, FFN, layers, query width, key width, taps; draft vocabulary; target parameters
    "SmolLM2-135M, as shipped": ((576, 704, 3, 576, 192, 3), 8192, 135e6),
    "Qwen3-4B": ((2560, 9728, 5, 4096, 1024, 5), 32_000, 4.0e9),
    "Qwen3-8B": ((4096, 12288, 5, 4096, 1024, 5), 32_000, 8.2e9),
}


def costs(shape, vocabulary, target):
    hidden, _, _, query, key, _ = shape
    layers, fc = drafter(*shape)
    slot = per_slot(layers, hidden * vocabulary)
    kv_share = 2 * key / (2 * query + 2 * key + 3 * shape[1])
    token = per_token(fc, layers, kv_share)
    return slot, token, 2 * target


def matrix_speed(size=2048, seconds=5.0):
    a, b = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(a, b)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def trainer_speed(path):
    """Slots a second, over all lines of one stage that tell their seconds."""
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    points = [line for line in lines if "positions" in line]
    pairs = [
        (b["positions"] - a["positions"], b["seconds"])
        for a, b in itertools.pairwise(points)
        if a["stage"] == b["stage"] and "seconds" in b
    ]
    return sum(slots for slots, _ in pairs) / sum(seconds for _, seconds in pairs)


def main():
    slots_a_second = trainer_speed(sys.argv[1])
    slot, token, _ = costs(*SHAPES["SmolLM2-135M, as shipped"])
    # with 48 anchors × 7 slots from answers of 330 tokens on average, stored features
    reached = slots_a_second * (slot + token * 330 / (48 * 7))
    peak = matrix_speed()
    share = reached / peak
    tokens = EPOCHS * ANSWERS * LENGTH
    slots = EPOCHS * ANSWERS * ANCHORS * 15
    rows = []
    for name in ("Qwen3-4B", "Qwen3-8B"):
        slot, token, features = costs(*SHAPES[name])
        work = slots * slot + tokens * (token + features)
        hours = work / (share * H100) / 3600
        rows.append([name, f"{work / 1e18:.1f}", f"{hours:.1f}", f"{hours / 8:.1f}"])
    result = {
        "slots_a_second": slots_a_second,
        "matrix_operations_a_second": peak,
        "trainer_share": share,
        "threads": torch.get_num_threads(),
        "epochs": EPOCHS,
        "answers": ANSWERS,
        "tokens_an_answer": LENGTH,
        "anchors_an_answer": ANCHORS,
        "tables": {
            "cost": {
                "columns": ["target", "10¹⁸ operations", "hours on 1 GPU", "hours on 8 GPUs"],
                "rows": rows,
            }
        },
    }
    sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
