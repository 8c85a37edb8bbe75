"""What a drafter learns from: the target's features and candidates, one sequence at a time.

A source gives them for any response. `OnlineFeatures` runs the target when it is asked, needs no
disk and is the default; `StoredFeatures` (store.py) reads what was computed once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.target.taps import decoder_layers, tapped
from d2sd.train.responses import Response, batches_by_length

SOFT = 32
"""Kept next-token candidates: they hold 96 % of the target's probability on the responses."""

PASS_TOKENS = 8192
GPU_PASS_TOKENS = 65536
"""Most tokens of one target pass, padding included; a GPU waits for launches in small ones."""

ROWS = 32
"""Passes are padded to a multiple of this: on a CPU torch keeps megabytes for each new shape."""

SCALE_TOKENS = 4096
"""About how many tokens the size of the features is measured on."""


@dataclass(frozen=True)
class StoreIndex:
    """Where each response's rows lie in one long list of all rows, and how they are made."""

    taps: tuple[int, ...]
    hidden: int
    starts: tuple[int, ...]
    prompts: tuple[int, ...]
    temperatures: tuple[float, ...]
    draft_ids: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.starts[-1]

    def length(self, sequence: int) -> int:
        """Tokens of a sequence, the prompt's included."""
        return self.starts[sequence + 1] - self.starts[sequence]


@dataclass(frozen=True)
class Rows:
    """One sequence, a row per token.

    `features` are tapped hidden states divided by the source's scale, in bfloat16. `soft_ids` and
    `soft_probs` are the target's most probable next tokens after the row's, over the draft
    vocabulary (draft ids; probabilities sum to less than 1).
    """

    features: Float[Tensor, "rows taps hidden"]
    soft_ids: Int[Tensor, "rows labels"]
    soft_probs: Float[Tensor, "rows labels"]
    tokens: Int[Tensor, " rows"]

    def to(self, device: torch.device) -> Rows:
        return Rows(
            self.features.to(device),
            self.soft_ids.to(device),
            self.soft_probs.to(device),
            self.tokens.to(device),
        )


class FeatureSource(ABC):
    """The rows of every response, by the response's number."""

    index: StoreIndex
    scale: Float[Tensor, "taps hidden"]
    """What features are divided by: their root mean square, per layer and dimension."""

    @abstractmethod
    def read(self, sequences: Sequence[int]) -> list[Rows]:
        """Rows of these sequences, in this order."""


class OnlineFeatures(FeatureSource):
    """Rows from a pass of the target, a transformers causal LM, whenever they are read.

    The rows lie on the target's device. Their last bits may depend on which sequences are read
    together, never on what was read before. Raises ValueError when a tap or a token is not the
    target's.
    """

    def __init__(
        self,
        model: Any,
        responses: Sequence[Response],
        taps: Sequence[int],
        draft_ids: Sequence[int],
        scale: Float[Tensor, "taps hidden"] | None = None,
    ) -> None:
        self._model = model
        self._responses = responses
        self._layers = _tapped_layers(model, taps)
        _check_tokens(model, responses)
        head = model.get_output_embeddings().weight.detach()
        self._head = head[torch.tensor(draft_ids, device=head.device)]
        self.index = index_of(responses, taps, draft_ids, model.config.hidden_size)
        self.scale = (self._root_mean_square() if scale is None else scale).to(model.device)

    # no inference_mode: a backward pass may not keep what was made in it
    @torch.no_grad()
    def read(self, sequences: Sequence[int]) -> list[Rows]:
        found: dict[int, Rows] = {}
        most = PASS_TOKENS if self._model.device.type == "cpu" else GPU_PASS_TOKENS
        for batch in batches_by_length([self.index.length(i) for i in sequences], most):
            features, last = self._pass([sequences[i] for i in batch])
            for row, i in enumerate(batch):
                found[i] = self._rows(sequences[i], features[row], last[row])
        return [found[i] for i in range(len(sequences))]

    def _rows(self, sequence: int, features: Tensor, last: Tensor) -> Rows:
        """Rows of one sequence from its line of a padded pass."""
        response = self._responses[sequence]
        length = len(response)
        logits = (last @ self._head.T)[:length].float()
        best = logits.topk(min(SOFT, logits.shape[1]), dim=-1)
        return Rows(
            features=(features[:length].float() / self.scale).bfloat16(),
            soft_ids=best.indices.int(),
            soft_probs=(best.values - logits.logsumexp(-1, keepdim=True)).exp().bfloat16(),
            tokens=torch.tensor(response.tokens, dtype=torch.int32, device=last.device),
        )

    def _pass(
        self, sequences: Sequence[int]
    ) -> tuple[Float[Tensor, "batch rows taps hidden"], Float[Tensor, "batch rows hidden"]]:
        """Outputs of the tapped layers, and the final normed hidden states; padded on the right."""
        longest = -(-max(self.index.length(i) for i in sequences) // ROWS) * ROWS
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            response = self._responses[sequence]
            ids[row, : len(response)] = torch.tensor(response.tokens)
        # causal attention never looks right, so the padding needs no mask
        with tapped(self._layers) as outputs:
            body = self._model.base_model
            last = body(ids.to(self._model.device), use_cache=False).last_hidden_state
        return torch.stack([outputs[layer] for layer in self._layers], dim=2), last

    @torch.no_grad()
    def _root_mean_square(self) -> Float[Tensor, "taps hidden"]:
        """Size of each feature over evenly spaced responses, always the same ones.

        First tokens are left out: their states are outliers.
        """
        every = max(self.index.rows // SCALE_TOKENS, 1)
        squares, rows = torch.zeros((), device=self._model.device), 0
        for sequence in range(0, len(self._responses), every):
            features = self._pass([sequence])[0][0, 1 : self.index.length(sequence)].float()
            squares, rows = squares + features.square().sum(0), rows + len(features)
        return (squares / rows).sqrt().clamp_min(1e-3)


class KeptFeatures(FeatureSource):
    """Another source whose rows stay in memory once read; for few sequences, read often."""

    def __init__(self, source: FeatureSource) -> None:
        self.index, self.scale = source.index, source.scale
        self._source = source
        self._kept: dict[int, Rows] = {}

    def read(self, sequences: Sequence[int]) -> list[Rows]:
        for sequence in sequences:
            if sequence not in self._kept:  # read alone, so that the order can't change a bit
                self._kept[sequence] = self._source.read([sequence])[0]
        return [self._kept[sequence] for sequence in sequences]


def index_of(
    responses: Sequence[Response], taps: Sequence[int], draft_ids: Sequence[int], hidden: int
) -> StoreIndex:
    """The index of these responses' rows."""
    return StoreIndex(
        taps=tuple(taps),
        hidden=hidden,
        starts=tuple(torch.tensor([0, *map(len, responses)]).cumsum(0).tolist()),
        prompts=tuple(len(response.prompt_ids) for response in responses),
        temperatures=tuple(response.temperature for response in responses),
        draft_ids=tuple(draft_ids),
    )


def _tapped_layers(model: Any, taps: Sequence[int]) -> list[torch.nn.Module]:
    count = model.config.num_hidden_layers
    for tap in taps:
        if not 0 <= tap < count:
            raise ValueError(
                f"feature layer {tap} does not exist: the target has layers 0 to {count - 1}; "
                "choose other taps"
            )
    layers = decoder_layers(model.base_model, count)
    return [layers[tap] for tap in taps]


def _check_tokens(model: Any, responses: Sequence[Response]) -> None:
    largest = max(max(response.tokens) for response in responses)
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"the responses hold token {largest}, but the target has {model.config.vocab_size} "
            "tokens; use responses of this target"
        )
