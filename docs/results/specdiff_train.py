"""Trains the masked-diffusion drafter that comes with d2sd, for as long as it is given.

python docs/results/specdiff_train.py TARGET_FOLDER responses.jsonl.gz WORK_FOLDER 03:15 04:00

From the target's layers 0, 1 and 29 on the same answers as the block drafters: cross-entropy first,
streak-distillation's weighted one (SpecDiff-2, `ce-streak`) for the last fifth of the time; the
rates fall in the last 15 %. Times are UTC. WORK_FOLDER/out is the drafter, log.jsonl says how it
went; killed, it goes on.
"""

import datetime
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from d2sd.blockwise.model import BlockSettings
from d2sd.train.adapting import AdaptRecipe
from d2sd.train.masked_drafter import DraftBlocks, DrafterAdaptation, of_layers
from d2sd.train.noising import Noise
from d2sd.train.responses import read_responses
from d2sd.train.schedule import Schedule

LAYERS, MASK, SLOTS = (0, 1, 29), 4, 8
STREAK, COOL = 0.8, 0.85
EVERY = 20


def seconds_until(clock: str) -> float:
    now = datetime.datetime.now(datetime.UTC)
    hour, minute = map(int, clock.split(":"))
    return (now.replace(hour=hour, minute=minute, second=0) - now).total_seconds()


torch.set_num_threads(1)
folder, answers, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
work.mkdir(parents=True, exist_ok=True)
model = of_layers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), LAYERS)
schedule = Schedule(10**6, 3e-3, 2e-3, warmup=30, objective="decayed:tau=4")
recipe = AdaptRecipe(schedule, Noise("all", 0.0), layers=len(LAYERS), rows_per_step=5, held_out=48)
run = DrafterAdaptation(
    model,
    BlockSettings(MASK, SLOTS, shifted=True),
    recipe,
    read_responses(answers),
    DraftBlocks(blocks=64),
)
run.resume(work)
log = (work / "log.jsonl").open("a")
begin, end = time.time() + seconds_until(sys.argv[4]), time.time() + seconds_until(sys.argv[5])
losses, marked = 0.0, time.time()
counted = work / "slots.json"
slots = json.loads(counted.read_text()) if counted.exists() else 0
while (share := (time.time() - begin) / (end - begin)) < 1:
    if share > STREAK:
        run.minimise("ce-streak")
    left = min(1.0, (1 - share) / (1 - COOL))  # the clock decides, not the number of steps
    rates = replace(schedule, matrix_rate=3e-3 * left, vector_rate=2e-3 * left)
    run.recipe = replace(recipe, schedule=rates)
    losses += run.advance()
    slots += run.learned
    if run.step % EVERY == 0:
        accepted, right = run.accepted()
        line = {
            "step": run.step,
            "slots": slots,
            "loss": losses / EVERY,
            "objective": "ce-streak" if share > STREAK else "decayed:tau=4",
            "held_out_accepted": accepted,
            "right": [round(share, 4) for share in right],
            "seconds": round(time.time() - marked),
        }
        log.write(json.dumps(line) + "\n")
        log.flush()
        run.save(work)
        counted.write_text(str(slots))
        losses = 0.0
accepted, right = run.accepted()
line = {"step": run.step, "slots": slots, "held_out_accepted": accepted, "end": True}
log.write(json.dumps(line) + "\n")
run.save(work)
counted.write_text(str(slots))
run.export(work / "out")
