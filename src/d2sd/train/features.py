"""Run the target once over the responses and keep what a drafter learns from.

A store is a folder of flat files, one row per token of every response (prompt included):
`features` (tapped hidden states divided by `scale`, bfloat16), `soft_ids` and `soft_probs` (the
most probable next tokens over the draft vocabulary), `tokens`; and `store.json`, written last,
which makes the store complete. A store is derived data: it can always be made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.target.hf import decoder_layers, tapped
from d2sd.train.responses import Response, batches_by_length

SOFT = 32
"""Kept next-token candidates: they hold 96 % of the target's probability on the responses."""


@dataclass(frozen=True)
class StoreIndex:
    """Where each response's rows lie, and how they were made."""

    taps: tuple[int, ...]
    hidden: int
    starts: tuple[int, ...]
    prompts: tuple[int, ...]
    temperatures: tuple[float, ...]
    draft_ids: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.starts[-1]


class FeatureStore:
    """Memory-mapped rows of a finished store."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            values: dict[str, Any] = json.loads((folder / "store.json").read_text())
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no finished feature store") from None
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        self.index = StoreIndex(**lists)
        self._map(folder, writable=False)

    @classmethod
    def is_complete(cls, folder: str | Path) -> bool:
        return (Path(folder) / "store.json").is_file()

    def _map(self, folder: Path, writable: bool) -> None:
        rows, taps, hidden = self.index.rows, len(self.index.taps), self.index.hidden
        self.features = _mapped(folder / "features", (rows, taps, hidden), torch.bfloat16, writable)
        self.soft_ids = _mapped(folder / "soft_ids", (rows, SOFT), torch.int16, writable)
        self.soft_probs = _mapped(folder / "soft_probs", (rows, SOFT), torch.bfloat16, writable)
        self.tokens = _mapped(folder / "tokens", (rows,), torch.int32, writable)
        self.scale = _mapped(folder / "scale", (taps, hidden), torch.float32, writable)


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype, writable: bool) -> Tensor:
    if writable:
        with path.open("ab") as file:
            file.truncate(prod(shape) * dtype.itemsize)
    # shared=True maps the file instead of reading it; nothing here writes to a finished store
    return torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype).view(shape)


def build_store(
    model: Any,
    responses: Sequence[Response],
    folder: str | Path,
    taps: Sequence[int],
    draft_ids: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureStore:
    """Fill a store from a transformers causal LM; `progress` hears (rows done, rows in all).

    Size on disk: 2 · taps · hidden + 100 bytes a token. A killed run starts over.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store.json").unlink(missing_ok=True)
    store = FeatureStore.__new__(FeatureStore)
    starts = torch.tensor([0, *map(len, responses)]).cumsum(0).tolist()
    store.index = StoreIndex(
        taps=tuple(taps),
        hidden=model.config.hidden_size,
        starts=tuple(starts),
        prompts=tuple(len(response.prompt_ids) for response in responses),
        temperatures=tuple(response.temperature for response in responses),
        draft_ids=tuple(draft_ids),
    )
    store._map(folder, writable=True)
    head = model.get_output_embeddings().weight[torch.tensor(draft_ids)]
    batches = list(batches_by_length(list(map(len, responses)), tokens=8192))
    store.scale.copy_(_root_mean_square(model, responses, batches[len(batches) // 2], taps))
    done = 0
    for batch in batches:
        _fill(store, model, head, responses, batch)
        done += sum(len(responses[i]) for i in batch)
        progress(done, starts[-1])
    (folder / "store.json").write_text(json.dumps(asdict(store.index)))
    return FeatureStore(folder)


@torch.inference_mode()
def _hidden_states(
    model: Any, responses: Sequence[Response], batch: Sequence[int], taps: Sequence[int]
) -> tuple[Float[Tensor, "batch rows taps hidden"], Float[Tensor, "batch rows hidden"]]:
    """Outputs of the tapped layers, and the final normed hidden states; padded on the right."""
    longest = max(len(responses[i]) for i in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, index in enumerate(batch):
        tokens = (*responses[index].prompt_ids, *responses[index].response_ids)
        ids[row, : len(tokens)] = torch.tensor(tokens)
    # causal attention never looks right, so the padding needs no mask
    layers = decoder_layers(model.base_model, model.config.num_hidden_layers)
    with tapped([layers[tap] for tap in taps]) as outputs:
        last = model.base_model(ids.to(model.device), use_cache=False).last_hidden_state
    return torch.stack([outputs[layers[tap]] for tap in taps], dim=2), last


def _root_mean_square(
    model: Any, responses: Sequence[Response], batch: Sequence[int], taps: Sequence[int]
) -> Float[Tensor, "taps hidden"]:
    """Size of each feature, without the first token: its states are outliers."""
    features, _ = _hidden_states(model, responses, batch, taps)
    return features[:, 1:].float().square().mean((0, 1)).sqrt().clamp_min(1e-3)


@torch.inference_mode()
def _fill(
    store: FeatureStore,
    model: Any,
    head: Float[Tensor, "draft_vocab hidden"],
    responses: Sequence[Response],
    batch: Sequence[int],
) -> None:
    features, last = _hidden_states(model, responses, batch, store.index.taps)
    features = features / store.scale.to(features)
    for row, index in enumerate(batch):
        response = responses[index]
        rows = slice(store.index.starts[index], store.index.starts[index + 1])
        store.features[rows] = features[row, : len(response)].cpu()
        logits = (last[row, : len(response)] @ head.T).float()
        best = logits.topk(SOFT, dim=-1)
        store.soft_ids[rows] = best.indices.cpu().to(torch.int16)
        store.soft_probs[rows] = (best.values - logits.logsumexp(-1, keepdim=True)).exp().cpu()
        store.tokens[rows] = torch.tensor([*response.prompt_ids, *response.response_ids])
