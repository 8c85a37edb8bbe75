"""The tree walk in the place of vLLM's rejection sampler: only draws of vLLM's own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from d2sd.engines.batches.placement import Placement, PlainPass
from d2sd.engines.batches.walk import walk


class TreeSampler(nn.Module):
    """Called like vLLM's `RejectionSampler`.

    At every depth the plain sampler draws for all requests that still walk, from the logits of the
    node where they stand: with each one's temperature, filters, penalties, seed and log-probs, as
    it would without drafts. `placement` is the trees of the pass; whoever runs it sets it before.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.stock = stock
        self.sampler = stock.sampler
        self.placement: Placement | PlainPass | None = None

    def forward(
        self,
        metadata: Any,
        draft_probs: Tensor | None,
        logits: Float[Tensor, "rows vocab"],
        sampling_metadata: Any,
    ) -> SamplerOutput:
        placement = self.placement
        if placement is None:  # a warm-up of the engine's own
            return self.stock(metadata, draft_probs, logits, sampling_metadata)
        counts = metadata.num_draft_tokens
        if isinstance(placement, PlainPass):  # which shall cost what it does without us
            assert not any(counts)
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)
        assert [len(placed.tree) - 1 for placed in placement.trees] == counts
        if not any(counts):  # nor shall one that reads prompts
            placement.paths = [(0,)] * len(counts)
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)
        draws = _Draws(self.sampler, logits, counts, sampling_metadata)
        walked = walk([placed.tree for placed in placement.trees], draws)
        placement.paths = walked.paths
        return SamplerOutput(
            sampled_token_ids=_padded(walked.emitted, max(counts) + 1, logits.device),
            logprobs_tensors=draws.logprobs(max(counts) + 1),
        )


class _Draws:
    """`walk.Draw` by vLLM's sampler, and the log-probs it gave."""

    def __init__(self, sampler: Any, logits: Tensor, counts: Sequence[int], settings: Any) -> None:
        self._sampler, self._logits, self._settings = sampler, logits, settings
        ends = torch.tensor([count + 1 for count in counts]).cumsum(0)
        self._firsts = [int(end) - count - 1 for end, count in zip(ends, counts, strict=True)]
        self._logprobs: list[LogprobsTensors] = []

    def __call__(self, nodes: list[int], emitted: list[list[int]], walking: set[int]) -> list[int]:
        rows = [first + node for first, node in zip(self._firsts, nodes, strict=True)]
        settings = self._settings
        if settings.generators:  # a seed's draws belong to emitted tokens alone
            generators = {n: g for n, g in settings.generators.items() if n in walking}
            settings = replace(settings, generators=generators)
        if any(emitted):
            settings = _after(settings, emitted)
        drawn = self._sampler(
            logits=self._logits[torch.tensor(rows, device=self._logits.device)],
            sampling_metadata=settings,
        )
        if drawn.logprobs_tensors is not None:
            self._logprobs.append(drawn.logprobs_tensors)
        return drawn.sampled_token_ids.flatten().tolist()

    def logprobs(self, width: int) -> LogprobsTensors | None:
        """All requests' log-probs, `width` places each; the last ones of most are never read."""
        if not self._logprobs:
            return None
        depths = self._logprobs + [self._logprobs[-1]] * (width - len(self._logprobs))
        ids, values, ranks = (
            torch.stack(parts, 1).flatten(0, 1)
            for parts in zip(*(depth[:3] for depth in depths), strict=True)
        )
        return LogprobsTensors(ids, values, ranks)


def _after(settings: Any, emitted: list[list[int]]) -> Any:
    """The settings once these tokens were emitted: penalties and bad words look back at them.

    Whatever keeps a count of its own (the budget of thinking tokens) gets no drafts, so its
    requests never walk past the anchor.
    """
    outputs = settings.output_token_ids
    if outputs:
        outputs = [[*out, *new] for out, new in zip(outputs, emitted, strict=True)]
    return replace(
        settings, output_token_ids=outputs, spec_token_ids=None, thinking_budget_state_holder=None
    )


def _padded(emitted: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    """[requests, width] int32, -1 after the emitted tokens."""
    rows = [[*tokens, *[-1] * (width - len(tokens))] for tokens in emitted]
    return torch.tensor(rows, dtype=torch.int32, device=device)
