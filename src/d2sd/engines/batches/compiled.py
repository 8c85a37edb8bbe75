"""A drafter's passes over a batch, compiled ahead of time for any number of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import linear, pad

from d2sd.aot import FEWEST, compile_program
from d2sd.drafters.compiled import READ, compile_reading
from d2sd.drafters.network import DraftNetwork, KeyValues
from d2sd.drafters.passes import READ_ROWS, ContextRows, scaled
from d2sd.engines.batches.batch_pass import BatchPass, EagerBatchPass, padded

DRAFT = "batch.pt2"


class BatchDrafting(nn.Module):
    """One pass as a function of tensors only, which is what torch.export needs."""

    def __init__(self, network: DraftNetwork, head: Float[Tensor, "draft_vocab hidden"]) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Parameter(head, requires_grad=False)

    def forward(
        self,
        embeds: Float[Tensor, "sequences rows slots hidden"],
        first: Int[Tensor, " sequences"],
        asked: Int[Tensor, " asked"],
        keys: Float[Tensor, "layers sequences kv_heads context dim"],
        values: Float[Tensor, "layers sequences kv_heads context dim"],
        padding: Bool[Tensor, "sequences context"],
    ) -> Float[Tensor, "asked draft_vocab"]:
        """Float32 logits at the `asked` places."""
        sequences, rows, slots, _ = embeds.shape
        positions = first[:, None, None] + torch.arange(slots, device=embeds.device)
        layers = [KeyValues(*both) for both in zip(keys, values, strict=True)]
        unseen = padding[:, None].expand(-1, rows, -1)
        hidden = self.network(embeds, positions.expand(sequences, rows, slots), layers, unseen)
        logits = linear(hidden.flatten(0, 2)[asked], self.head)
        return scaled(logits.float(), self.network.config)


def compile_batch(
    network: DraftNetwork, head: Tensor, slots: int, several: bool, folder: Path
) -> None:
    """Write both compiled passes of `network` to `folder`.

    Drafts are of one block a sequence, or of two and more if `several`; `slots` is a block's size.
    Takes some seconds and a C++ compiler; what torch cannot do here it says as an exception.
    """
    config, auto = network.config, Dim.AUTO
    net, rows = config.network, 3 if several else 1
    weight = network.fc.weight
    context = (net.num_hidden_layers, 3, net.num_key_value_heads, 11, net.head_dim)
    example = (
        weight.new_zeros(3, rows, slots, config.hidden_size),
        torch.arange(3, device=weight.device),
        torch.arange(5, device=weight.device),
        weight.new_zeros(context),
        weight.new_zeros(context),
        torch.zeros(3, 11, dtype=torch.bool, device=weight.device),
    )
    blocks = {0: auto, 1: auto} if several else {0: auto}
    free = (
        blocks,
        {0: auto},
        {0: auto},
        {1: auto, 3: auto},
        {1: auto, 3: auto},
        {0: auto, 1: auto},
    )
    with torch.no_grad():
        program = torch.export.export(
            BatchDrafting(network, head), example, dynamic_shapes=free, strict=False
        )
        compile_program(program, folder / DRAFT, weight.device)
    compile_reading(network, folder)


def is_compiled(folder: Path) -> bool:
    """Whether `compile_batch` has finished in `folder`."""
    return (folder / READ).exists() and (folder / DRAFT).exists()


class CompiledBatchPass(BatchPass):
    """Runs what `compile_batch` wrote; `eager` runs blocks of another number or size."""

    def __init__(self, folder: Path, eager: EagerBatchPass, slots: int, several: bool) -> None:
        self._draft = torch._inductor.aoti_load_package(str(folder / DRAFT))
        self._read = torch._inductor.aoti_load_package(str(folder / READ))
        self._eager, self._slots, self._several = eager, slots, several
        self.fewest_rows = FEWEST if several else 1

    def read(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        most = READ_ROWS[-1]
        parts = zip(torch.split(features, most), torch.split(positions, most), strict=True)
        keys, values = zip(*(self._part(*one) for one in parts), strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    def _part(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Padded: torch keeps memory for every new number of rows."""
        count = len(features)
        more = next(size for size in READ_ROWS if size >= count) - count
        keys, values = self._read(pad(features, (0, 0, 0, 0, 0, more)), pad(positions, (0, more)))
        return keys[:, :, :count], values[:, :, :count]

    def draft(
        self, embeds: Tensor, first: Tensor, asked: Tensor, held: Sequence[ContextRows]
    ) -> Tensor:
        sequences, rows, slots, _ = embeds.shape
        few = (rows > 1) != self._several or max(one.length for one in held) < FEWEST
        if few or slots != self._slots:
            return self._eager.draft(embeds, first, asked, held)
        more = max(FEWEST - sequences, 0)
        keys, values, padding = padded(held, sequences + more)
        places = (sequences + more) * rows * (slots - 1)
        logits = self._draft(
            pad(embeds, (0, 0, 0, 0, 0, 0, 0, more)),
            pad(first, (0, more)),
            pad(asked, (0, max(places, FEWEST) - len(asked))),
            keys,
            values,
            padding,
        )
        return logits[: len(asked)]
