"""Features on disk: computed once, read often; worth it where the target is slow.

A store is a folder of safetensors shards of whole sequences, and `store.json`, written last, which
makes it complete. A store is derived data: it can always be made again. It is never changed once
made: what it was made from is kept in it, and anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from d2sd.train.features import (
    PASS_TOKENS,
    SOFT,
    FeatureSource,
    OnlineFeatures,
    Rows,
    StoreIndex,
    index_of,
)
from d2sd.train.responses import Response, batches_by_length

SHARD_BYTES = 256 * 2**20
"""About the size of a shard. A killed run does at most this much again."""

FIELDS = ("features", "soft_ids", "soft_probs", "tokens")


@dataclass(frozen=True)
class Origin:
    """What a store was made from, as digests; a store serves no other."""

    responses: str
    target: str
    taps: str
    draft_ids: str
    layout: str

    def differences(self, other: Origin) -> list[str]:
        """In words, what differs."""
        mine, theirs = asdict(self), asdict(other)
        return [name.replace("_", " ") for name in mine if mine[name] != theirs[name]]


class StoredFeatures(FeatureSource):
    """Rows of a finished store, read from memory-mapped shards and moved to `device`."""

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        folder = Path(folder)
        values = _read_index(folder)
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values["index"].items()
        }
        self.index = StoreIndex(**lists)
        self.origin = Origin(**values["origin"])
        self._device = torch.device(device)
        self._firsts = values["shards"]
        self._files = [_opened(_shard_path(folder, k)) for k in range(len(self._firsts))]
        self.scale = self._files[0].get_tensor("scale").to(self._device)

    @classmethod
    def is_complete(cls, folder: str | Path) -> bool:
        return (Path(folder) / "store.json").is_file()

    def read(self, sequences: Sequence[int]) -> list[Rows]:
        return [self._read(sequence) for sequence in sequences]

    def _read(self, sequence: int) -> Rows:
        shard = bisect_right(self._firsts, sequence) - 1
        starts = self.index.starts
        first = starts[self._firsts[shard]]
        rows = slice(starts[sequence] - first, starts[sequence + 1] - first)
        return Rows(*(self._files[shard].get_slice(name)[rows] for name in FIELDS)).to(self._device)


def store_bytes(rows: int, taps: int, hidden: int) -> int:
    """Size on disk of a store with `rows` tokens, apart from a few kB of index."""
    return rows * (2 * taps * hidden + (4 + 2) * SOFT + 4)


def build_store(
    model: Any,
    responses: Sequence[Response],
    folder: str | Path,
    taps: Sequence[int],
    draft_ids: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoredFeatures:
    """The store of these responses, made as far as it isn't there yet.

    `progress` hears (rows done, rows in all). A killed run goes on after its last whole shard and
    ends with the same bytes as an undisturbed one. Raises ValueError when the folder holds features
    of something else, or the disk has too little room (`store_bytes`).
    """
    folder = Path(folder)
    origin = origin_of(model, responses, taps, draft_ids)
    if StoredFeatures.is_complete(folder):
        store = StoredFeatures(folder, model.device)
        _check_origin(folder, store.origin, origin)
        return store
    index = index_of(responses, taps, draft_ids, model.config.hidden_size)
    shards = _shards(index)
    finished = _finished_shards(folder, len(shards), origin)
    missing = [k for k in range(len(shards)) if k not in finished]
    done = sum(map(index.length, (i for k in finished for i in shards[k])))
    _check_room(folder, store_bytes(index.rows - done, len(taps), index.hidden))
    if missing:
        # shards of one store share one scale, whatever machine goes on with it
        parts = [_opened(_shard_path(folder, k)) for k in finished[:1]]
        scale = parts[0].get_tensor("scale") if parts else None
        source = OnlineFeatures(model, responses, taps, draft_ids, scale)
    for shard in missing:
        rows = _read_shard(source, shards[shard], done, progress)
        done += len(rows["tokens"])
        _write_shard(_shard_path(folder, shard), {**rows, "scale": source.scale.cpu()}, origin)
    _write_index(folder, index, origin, shards)
    return StoredFeatures(folder, model.device)


def origin_of(
    model: Any, responses: Sequence[Response], taps: Sequence[int], draft_ids: Sequence[int]
) -> Origin:
    """Digests of all that a store follows from.

    The target's is of its rotary parameters and of some 64 evenly spaced weights of each tensor.
    """
    rotary = getattr(model.config, "rope_parameters", None)
    target = hashlib.sha256(json.dumps(rotary, sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        target.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        sample = weight.flatten()[:: max(weight.numel() // 64, 1)]
        target.update(str(sample.float().tolist()).encode())
    answers = hashlib.sha256()
    for response in responses:
        line = (response.prompt_ids, response.response_ids, response.temperature)
        answers.update(str(line).encode())
    return Origin(
        responses=answers.hexdigest(),
        target=target.hexdigest(),
        taps=_digest(taps),
        draft_ids=_digest(draft_ids),
        layout=_digest([SHARD_BYTES, PASS_TOKENS, SOFT]),  # shards of two layouts would not fit
    )


def _digest(numbers: Sequence[int]) -> str:
    return hashlib.sha256(str(list(numbers)).encode()).hexdigest()


def _shards(index: StoreIndex) -> list[range]:
    """Sequences of each shard: consecutive whole ones, as many as `SHARD_BYTES` hold."""
    shards: list[range] = []
    start, limit = 0, SHARD_BYTES // store_bytes(1, len(index.taps), index.hidden)
    for end in range(1, len(index.prompts) + 1):
        is_last = end == len(index.prompts)
        if is_last or index.starts[end + 1] - index.starts[start] > limit:
            shards.append(range(start, end))
            start = end
    return shards


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _finished_shards(folder: Path, count: int, origin: Origin) -> list[int]:
    """Those a killed run left whole. Raises ValueError when they are of something else."""
    finished = [shard for shard in range(count) if _shard_path(folder, shard).is_file()]
    for shard in finished:
        made_from = json.loads(_opened(_shard_path(folder, shard)).metadata()["origin"])
        _check_origin(folder, Origin(**made_from), origin)
    return finished


def _opened(shard: Path) -> Any:
    return safe_open(shard, "pt")


def _read_shard(
    source: OnlineFeatures, shard: range, done: int, progress: Callable[[int, int], None]
) -> dict[str, Tensor]:
    """All rows of a shard's sequences, in their order; `done` rows came before."""
    found: dict[int, Rows] = {}
    # what is read together follows from the shard alone, so that a killed run changes no bit
    for batch in batches_by_length([source.index.length(i) for i in shard], PASS_TOKENS):
        sequences = [shard[i] for i in batch]
        for sequence, rows in zip(sequences, source.read(sequences), strict=True):
            found[sequence] = rows.to(torch.device("cpu"))
            done += len(rows.tokens)
        progress(done, source.index.rows)
    return {name: torch.cat([getattr(found[i], name) for i in shard]) for name in FIELDS}


def _write_shard(path: Path, tensors: dict[str, Tensor], origin: Origin) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    # one entry, because safetensors writes several in any order
    save_file(tensors, unfinished, {"origin": json.dumps(asdict(origin))})
    unfinished.replace(path)


def _check_origin(folder: Path, found: Origin, wanted: Origin) -> None:
    if found != wanted:
        raise ValueError(
            f"{folder} holds features made from other {', '.join(found.differences(wanted))}; "
            "choose another folder or remove this one"
        )


def _check_room(folder: Path, needed: int) -> None:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"the features need {needed / 1e9:.1f} GB, but {folder} has room for {free / 1e9:.1f}; "
            "choose another disk, or train with features online"
        )


def _write_index(folder: Path, index: StoreIndex, origin: Origin, shards: Sequence[range]) -> None:
    firsts = [shard.start for shard in shards]
    values = {"index": asdict(index), "origin": asdict(origin), "shards": firsts}
    unfinished = folder / "store.json.part"
    unfinished.write_text(json.dumps(values))
    unfinished.replace(folder / "store.json")


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / "store.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished feature store") from None
    if "shards" not in values:
        raise ValueError(f"{folder} holds features in an older layout; remove them")
    return values
