"""One training loop for both drafters: step, evaluate, checkpoint, resume."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2sd.drafters.network import DraftNetwork
from d2sd.train.attention import use_fast_attention
from d2sd.train.batches import BlockBatch, BlockSampler
from d2sd.train.loss import log_partition, soft_cross_entropy

Compiler = Callable[..., Callable[..., Any]]
"""`torch.compile`, or anything that returns an equal function."""


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates.

    Both rates rise over `warmup` steps, stay, and fall to 0 in a straight line over the last
    `cooldown` share of the steps. While they stay, `steps` can still be changed by resuming.
    """

    steps: int
    matrix_rate: float = 2e-3
    """Muon's rate for matrices, on the scale of AdamW's (update RMS matched)."""
    vector_rate: float = 1e-3
    """AdamW's rate for norms."""
    warmup: int = 50
    cooldown: float = 0.3
    clip: float = 1.0
    hard_share: float = 0.5
    """Weight of the emitted token against the target's whole distribution, as labels."""

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return min(1.0, (self.steps - step) / max(self.cooldown * self.steps, 1))


@dataclass(frozen=True)
class StepReport:
    """What the loop reports after a step."""

    step: int
    loss: float
    positions: int
    """Masked slots learned from so far."""


class Trainer:
    """Trains `network` in place of float32 masters; the passes run in bfloat16.

    `embedding` and `head` are the target's, frozen; `head` holds the draft vocabulary's rows.
    """

    def __init__(
        self,
        network: DraftNetwork,
        embedding: Float[Tensor, "vocab hidden"],
        head: Float[Tensor, "draft_vocab hidden"],
        sampler: BlockSampler,
        schedule: Schedule,
        compiler: Compiler = torch.compile,
    ) -> None:
        assert network.draft_ids is not None
        self.network = network.float().requires_grad_(True).train()
        self.sampler = sampler
        self.schedule = schedule
        self.step = 0
        self.positions = 0
        self._working = copy.deepcopy(network).bfloat16()
        use_fast_attention(self._working)
        self._embedding = embedding.bfloat16()
        self._head = head.bfloat16().contiguous()
        self._draft_id = torch.full((len(embedding),), -1)
        self._draft_id[network.draft_ids] = torch.arange(len(head))
        self._optimizers = _optimizers(self.network)
        self._forward = compiler(self._hidden)
        self._partition = compiler(log_partition)

    @property
    def finished(self) -> bool:
        return self.step >= self.schedule.steps

    def run(self, report: Callable[[StepReport], None], until: int | None = None) -> None:
        """Train to the end of the schedule, or to step `until`."""
        until = min(until or self.schedule.steps, self.schedule.steps)
        while self.step < until:
            report(self._step(self.sampler.batch(self.step)))

    def _step(self, batch: BlockBatch) -> StepReport:
        with torch.no_grad():
            for working, master in zip(*self._parameters(), strict=True):
                working.copy_(master)
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for working, master in zip(*self._parameters(), strict=True):
            assert working.grad is not None
            master.grad, working.grad = working.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip)
        rates = (self.schedule.matrix_rate, self.schedule.vector_rate)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.schedule.factor(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.positions += int((batch.weights > 0).sum())
        return StepReport(self.step, loss.item(), self.positions)

    def _parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self._working.parameters()), list(self.network.parameters())

    def _loss(self, batch: BlockBatch) -> Tensor:
        hidden = self._forward(
            batch.features, self._embedding[batch.ids], batch.positions, batch.hidden_rows
        )
        used = batch.weights > 0
        ids, probs = self._labels(
            batch.labels[used], batch.soft_ids[used], batch.soft_probs[used].float()
        )
        return soft_cross_entropy(
            hidden[used], self._head, ids, probs, batch.weights[used], self._partition
        )

    def _hidden(
        self, features: Tensor, embeds: Tensor, positions: Tensor, hidden_rows: Tensor
    ) -> Tensor:
        rows = torch.arange(features.shape[1])[None].expand(features.shape[:2])
        context = self._working.read(features, rows)
        return self._working(embeds, positions, context, hidden_rows)

    def _labels(self, tokens: Tensor, soft_ids: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        """The target's candidates for each slot and, in the last column, the emitted token."""
        share = self.schedule.hard_share
        soft = soft / soft.sum(-1, keepdim=True) * (1 - share)
        emitted = self._draft_id[tokens]
        hard = torch.where(emitted >= 0, share, 0.0)
        ids = torch.cat([soft_ids, emitted.clamp_min(0)[:, None]], -1)
        return ids, torch.cat([soft, hard[:, None]], -1)

    def save(self, folder: str | Path) -> None:
        """A checkpoint from which training goes on bit for bit; the old one lives until it is."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for number, optimizer in enumerate(self._optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    state[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
        unfinished = folder / "checkpoint.part"
        metadata = {
            "step": str(self.step),
            "positions": str(self.positions),
            "schedule": json.dumps(asdict(self.schedule)),
        }
        save_file({k: v.contiguous() for k, v in state.items()}, unfinished, metadata)
        unfinished.replace(folder / "checkpoint.safetensors")

    def resume(self, folder: str | Path) -> bool:
        """Go on from the checkpoint in `folder`; False when there is none."""
        path = Path(folder) / "checkpoint.safetensors"
        if not path.is_file():
            return False
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        self.step, self.positions = int(metadata["step"]), int(metadata["positions"])
        state = load_file(path)
        prefix = "network."
        self.network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        for number, optimizer in enumerate(self._optimizers):
            whole = optimizer.state_dict()
            whole["state"] = _nested(state, f"optimizer.{number}.")
            optimizer.load_state_dict(whole)
        return True


def _nested(state: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    nested: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".")
            nested.setdefault(int(index), {})[key] = value
    return nested


def _optimizers(network: DraftNetwork) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for matrices, AdamW for vectors."""
    matrices = [p for p in network.parameters() if p.ndim == 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    return (
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, betas=(0.9, 0.95), weight_decay=0.0),
    )
