"""Answers by the target itself, many sequences side by side in one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from d2sd.answers.questions import Answer, Answerer, Question, Tick
from d2sd.sampling import Sampling, filtered
from d2sd.target.load import check_supported
from d2sd.text import Tokenizer, plain_text

PREFILL_TOKENS = 16384
GPU_PREFILL_TOKENS = 65536
"""Prompts are read in columns, so many padded tokens at a time at most."""

CHECK_EVERY = 16
"""Steps between two looks at who is done, where a look waits for the device; 1 on the CPU."""

BATCH = 256
CPU_BATCH = 32


class RowCache(Cache):
    """Keys and values of many sequences, preallocated; all rows of a batch are equally long.

    The first `length` columns are read. A pass of n columns writes behind them; whoever runs the
    pass raises `length`.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.length = 0
        self._capacity = capacity
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def update(
        self,
        key_states: Float[Tensor, "rows heads columns key_dim"],
        value_states: Float[Tensor, "rows heads columns value_dim"],
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[
        Float[Tensor, "rows heads read key_dim"], Float[Tensor, "rows heads read value_dim"]
    ]:
        """Write one layer's columns; views of all columns up to there."""
        keys = self._written(self._keys, layer_idx, key_states)
        return keys, self._written(self._values, layer_idx, value_states)

    def _written(self, buffers: list[Tensor | None], layer: int, states: Tensor) -> Tensor:
        rows, heads, columns, dim = states.shape
        buffer = buffers[layer]
        if buffer is None:
            buffer = buffers[layer] = states.new_empty(rows, heads, self._capacity, dim)
        end = self.length + columns
        buffer[:, :, self.length : end] = states
        return buffer[:, :, :end]

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget all rows but these."""
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = buffer.index_select(0, rows)

    def __len__(self) -> int:
        return len(self._keys)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0


@dataclass(frozen=True)
class _Rows:
    """The sequences still being answered; `numbers` says which question each one answers."""

    numbers: list[int]
    padding: Float[Tensor, "rows 1 1 capacity"]
    """Added to the scores of attention: the dtype's minimum where a column is padding."""
    pads: Int[Tensor, " rows"]
    room: Int[Tensor, " rows"]
    emitted: Int[Tensor, "rows steps"]
    temperatures: Float[Tensor, " rows"]
    chances: Float[Tensor, "rows steps"]
    """One uniform number for every token to be drawn, each row from its own generator."""
    sampled: Int[Tensor, " sampled"]
    """The rows that aren't greedy."""

    def only(self, kept: Int[Tensor, " kept"], greedy: Sequence[bool]) -> _Rows:
        """These rows alone; `greedy` is told of every question."""
        numbers = [self.numbers[row] for row in kept.tolist()]
        parts = {
            name: getattr(self, name).index_select(0, kept)
            for name in ("padding", "pads", "room", "emitted", "temperatures", "chances")
        }
        sampled = [row for row, number in enumerate(numbers) if not greedy[number]]
        index = torch.tensor(sampled, dtype=torch.long, device=kept.device)
        return replace(self, numbers=numbers, sampled=index, **parts)


class BatchedAnswerer(Answerer):
    """A loaded transformers causal LM that answers whole batches.

    Prompts are padded on the left, so the newest token of every row is in the same column. Every
    row draws with its own generator: an answer doesn't depend on its neighbours, up to rounding.
    When half of the rows are done, the others go on in a smaller batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        stop_tokens: frozenset[int],
        max_new_tokens: int,
        top_p: float = 1.0,
        batch: int | None = None,
    ) -> None:
        check_supported(model)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._config = model.config.get_text_config(decoder=True)
        self._longest: int = self._config.max_position_embeddings
        self._weight: Tensor = model.get_input_embeddings().weight
        self._device = self._weight.device
        self._stops = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=self._device)
        self._stop_tokens = stop_tokens
        self._max_new_tokens = max_new_tokens
        self._filter = Sampling(temperature=1.0, top_p=top_p)
        on_cpu = self._device.type == "cpu"
        self._check_every = 1 if on_cpu else CHECK_EVERY
        self._prefill_tokens = PREFILL_TOKENS if on_cpu else GPU_PREFILL_TOKENS
        self.batch = batch or (CPU_BATCH if on_cpu else BATCH)

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], tick: Tick) -> list[Answer]:
        """The answers; every prompt must leave room for a token in the model's context."""
        if not questions:
            return []
        greedy = [question.temperature == 0 for question in questions]
        rows, logits, cache = self._read(questions, greedy)
        drawn: dict[int, list[int]] = {}
        done = torch.zeros(len(questions), dtype=torch.bool, device=self._device)
        for step in range(rows.emitted.shape[1]):
            tokens = self._draw(rows, logits, step)
            rows.emitted[:, step] = tokens
            done |= torch.isin(tokens, self._stops) | (rows.room <= step + 1)
            if (step + 1) % self._check_every == 0 or step + 1 == rows.emitted.shape[1]:
                finished = int(done.sum())
                tick((len(rows.numbers) - finished) * self._check_every)
                if 2 * finished >= len(rows.numbers):
                    _collect(rows, done, step + 1, drawn)
                    kept = (~done).nonzero()[:, 0]
                    if not len(kept):
                        break
                    rows, tokens, done = rows.only(kept, greedy), tokens[kept], done[kept]
                    cache.keep_rows(kept)
            logits = self._pass(cache, tokens[:, None], rows)
        limits = [self._room(question) for question in questions]
        return [
            self._finished(question, drawn[number][: limits[number]])
            for number, question in enumerate(questions)
        ]

    def _room(self, question: Question) -> int:
        return min(self._max_new_tokens, self._longest - len(question.prompt_ids))

    def _finished(self, question: Question, tokens: list[int]) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self._stop_tokens), None)
        ids = tuple(tokens if end is None else tokens[: end + 1])
        text = plain_text(self._tokenizer, ids)
        return Answer(question.prompt_ids, ids, text, "length" if end is None else "stop")

    def _read(
        self, questions: Sequence[Question], greedy: Sequence[bool]
    ) -> tuple[_Rows, Float[Tensor, "rows vocab"], RowCache]:
        """All prompts read: the rows, the logits of their first tokens, the filled cache."""
        lengths = torch.tensor([len(question.prompt_ids) for question in questions])
        rooms = torch.tensor([self._room(question) for question in questions])
        assert int(rooms.min()) > 0, "a prompt leaves no room for an answer"
        width, steps = int(lengths.max()), int(rooms.max())
        ids = torch.zeros(len(questions), width, dtype=torch.long)
        chances = torch.empty(len(questions), steps)
        for row, question in enumerate(questions):
            ids[row, width - lengths[row] :] = torch.tensor(question.prompt_ids)
            generator = torch.Generator().manual_seed(question.seed)
            chances[row] = torch.rand(self._max_new_tokens, generator=generator)[:steps]
        pads = width - lengths
        padding = torch.zeros(len(questions), 1, 1, width + steps, dtype=self._weight.dtype)
        hidden = torch.arange(width + steps) < pads[:, None]
        padding.masked_fill_(hidden[:, None, None], torch.finfo(padding.dtype).min)
        device = self._device
        rows = _Rows(
            numbers=list(range(len(questions))),
            padding=padding.to(device),
            pads=pads.to(device),
            room=rooms.to(device),
            emitted=torch.zeros(len(questions), steps, dtype=torch.long, device=device),
            temperatures=torch.tensor([q.temperature for q in questions], device=device),
            chances=chances.to(device),
            sampled=torch.tensor([i for i, g in enumerate(greedy) if not g], device=device).long(),
        )
        cache = RowCache(self._config.num_hidden_layers, width + steps)
        ids = ids.to(device)
        columns = max(self._prefill_tokens // len(questions), 1)
        for start in range(0, width, columns):
            logits = self._pass(cache, ids[:, start : start + columns], rows)
        return rows, logits, cache

    def _pass(
        self, cache: RowCache, ids: Int[Tensor, "rows columns"], rows: _Rows
    ) -> Float[Tensor, "rows vocab"]:
        """Logits after the last of these columns, which are read into the cache."""
        start, end = cache.length, cache.length + ids.shape[1]
        places = torch.arange(start, end, device=self._device)
        mask = rows.padding[..., :end]
        if end - start > 1:
            ahead = torch.arange(end, device=self._device) > places[:, None]
            mask = torch.where(ahead, torch.finfo(mask.dtype).min, mask)
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            # rows that are done but still here must not grow past what the model knows
            position_ids=(places - rows.pads[:, None]).clamp(0, self._longest - 1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.length = end
        return output.logits[:, -1]

    def _draw(
        self, rows: _Rows, logits: Float[Tensor, "rows vocab"], step: int
    ) -> Int[Tensor, " rows"]:
        tokens = logits.argmax(-1)
        if len(rows.sampled):
            warm = rows.sampled
            scaled = logits[warm].float() / rows.temperatures[warm, None]
            tokens[warm] = pick(filtered(scaled, self._filter), rows.chances[warm, step])
        return tokens


def pick(
    probs: Float[Tensor, "rows vocab"], chances: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """The token of each row at which the cumulative probability passes its uniform number.

    So one number a token is all the randomness, however many rows share the pass. A token of
    probability 0 is never picked.
    """
    mass = probs.cumsum(-1)
    total = mass[:, -1:]
    wanted = torch.minimum(
        chances[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(mass, wanted, right=True)[:, 0]


def _collect(
    rows: _Rows, done: Bool[Tensor, " rows"], steps: int, drawn: dict[int, list[int]]
) -> None:
    """Note what the finished rows have emitted, and something after their end with it."""
    emitted, ended = rows.emitted[:, :steps].tolist(), done.tolist()
    for number, tokens, end in zip(rows.numbers, emitted, ended, strict=True):
        if end:
            drawn[number] = tokens
