"""A small target of our own, trained from text: where drafters get good within an hour of CPU time.

The method can only be judged where drafts are long, and a drafter for a big target needs more
training than a CPU gives. A target of a few million parameters on a narrow domain is ten times
cheaper to draft for. It is a Llama like any other, with its own byte-level BPE tokenizer, saved as
a Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2sd.train.checkpoints import read_checkpoint, write_checkpoint
from d2sd.train.compiling import Compiler
from d2sd.train.schedule import Schedule

PAD, START, END, MASK = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|mask|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

IGNORED = -100

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class SmallTarget:
    """Shape and schedule of the small target; 5.0 M parameters as it stands."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024
    row: int = 512
    rows_per_step: int = 8
    steps: int = 2500
    matrix_rate: float = 5e-3
    vector_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.4
    seed: int = 0

    def factor(self, step: int) -> float:
        """Share of the learning rates at a step, as in the drafters' schedules."""
        return Schedule(self.steps, warmup=self.warmup, cooldown=self.cooldown).factor(step)


@dataclass(frozen=True)
class Exchange:
    """One prompt and its answer, as text."""

    prompt: str
    response: str


def train_tokenizer(exchanges: Sequence[Exchange], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly these texts, with a chat template and a mask token."""
    tokenizer = Tokenizer(models.BPE())
    # single digits: numbers are read digit by digit, as SmolLM2's tokenizer does
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for e in exchanges for text in (e.prompt, e.response))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        mask_token=MASK,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: Any, exchanges: Sequence[Exchange], longest: int) -> list[list[int]]:
    """Token ids of whole exchanges in the chat template; those longer than `longest` are cut."""
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": exchange.prompt},
                {"role": "assistant", "content": exchange.response},
            ],
            tokenize=False,
        )
        for exchange in exchanges
    ]
    return [ids[:longest] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


@dataclass(frozen=True)
class Packed:
    """Several documents in each row, which do not see each other."""

    ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    documents: Int[Tensor, "rows length"]
    """Number of the document within its row; -1 is padding."""

    def labels(self) -> Int[Tensor, "rows length"]:
        """The next token of the same document, or IGNORED."""
        follows = torch.zeros_like(self.documents, dtype=torch.bool)
        follows[:, :-1] = (self.documents[:, 1:] == self.documents[:, :-1]) & (
            self.documents[:, 1:] >= 0
        )
        return self.ids.roll(-1, 1).masked_fill(~follows, IGNORED)

    def visible(self) -> Bool[Tensor, "rows 1 length length"]:
        """Attention mask: earlier tokens of the same document."""
        same = self.documents[:, :, None] == self.documents[:, None]
        return (same & same.new_ones(same.shape[1:]).tril())[:, None]


def pack(documents: Sequence[Sequence[int]], length: int) -> Packed:
    """Documents (each at most `length`) in rows of `length`, first row with room first."""
    rows: list[list[Sequence[int]]] = []
    free: list[int] = []
    for document in sorted(documents, key=len, reverse=True):
        at = next((i for i, room in enumerate(free) if room >= len(document)), len(rows))
        if at == len(rows):
            rows.append([])
            free.append(length)
        rows[at].append(document)
        free[at] -= len(document)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions, owner = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, held in enumerate(rows):
        start = 0
        for number, document in enumerate(held):
            span = slice(start, start + len(document))
            ids[row, span] = torch.tensor(document)
            positions[row, span] = torch.arange(len(document))
            owner[row, span] = number
            start += len(document)
    return Packed(ids, positions, owner)


@dataclass(frozen=True)
class RowSampler:
    """All rows once an epoch, shuffled; every batch follows from (seed, step)."""

    packed: Packed
    rows_per_step: int
    seed: int

    def batch(self, step: int) -> Packed:
        per_epoch = max(len(self.packed.ids) // self.rows_per_step, 1)
        epoch, index = divmod(step, per_epoch)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.packed.ids), generator=rng)
        chosen = order[index * self.rows_per_step : (index + 1) * self.rows_per_step]
        return Packed(
            self.packed.ids[chosen], self.packed.positions[chosen], self.packed.documents[chosen]
        )


def build_model(shape: SmallTarget, tokenizer: Any) -> LlamaForCausalLM:
    """An untrained Llama of this shape, float32, embedding and output head tied."""
    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


Report = Callable[[int, float], None]
"""Hears (step, loss in nats a token) after each training step."""


class SmallTargetTraining:
    """Next-token training in bfloat16 with float32 weights; resumable bit for bit on a CPU."""

    def __init__(
        self,
        shape: SmallTarget,
        model: LlamaForCausalLM,
        sampler: RowSampler,
        compiler: Compiler = torch.compile,
    ) -> None:
        self.shape, self.model, self.sampler = shape, model.train(), sampler
        self.step = 0
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
        self.optimizers = (
            torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self._loss = compiler(self._batch_loss)

    def run(self, report: Report, until: int) -> None:
        """Train to step `until`, or to the end of the schedule."""
        while self.step < min(until, self.shape.steps):
            loss = self._loss(*_tensors(self.sampler.batch(self.step)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            rates = (self.shape.matrix_rate, self.shape.vector_rate)
            for optimizer, rate in zip(self.optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * self.shape.factor(self.step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            report(self.step, loss.item())

    def save(self, folder: Path) -> None:
        """A checkpoint from which training goes on bit for bit."""
        facts = {"step": str(self.step)}
        write_checkpoint(folder / CHECKPOINT, {"model": self.model}, self.optimizers, facts)

    def resume(self, folder: Path) -> bool:
        """Go on from the checkpoint in `folder`; False when there is none."""
        facts = read_checkpoint(folder / CHECKPOINT, {"model": self.model}, self.optimizers)
        if facts is not None:
            self.step = int(facts["step"])
        return facts is not None

    @torch.no_grad()
    def held_out_loss(self, packed: Packed) -> float:
        """Mean loss in nats a token over all rows."""
        total = count = 0.0
        for rows in torch.split(torch.arange(len(packed.ids)), self.shape.rows_per_step):
            part = Packed(packed.ids[rows], packed.positions[rows], packed.documents[rows])
            known = int((part.labels() != IGNORED).sum())
            total += float(self._batch_loss(*_tensors(part))) * known
            count += known
        return total / max(count, 1)

    def _batch_loss(self, ids: Tensor, positions: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = self.model(
                ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
        return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _tensors(packed: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = torch.zeros(packed.visible().shape, dtype=torch.bfloat16)
    mask = hidden.masked_fill(~packed.visible(), torch.finfo(torch.bfloat16).min)
    # a padding row sees itself: a row that sees nothing would make its softmax NaN
    mask = mask.masked_fill(torch.eye(mask.shape[-1], dtype=torch.bool), 0.0)
    return packed.ids, packed.positions, mask, packed.labels()
