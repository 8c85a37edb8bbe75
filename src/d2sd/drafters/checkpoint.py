"""Drafter checkpoints on disk: `config.json` and `model.safetensors`, DFlash or speculators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork

WEIGHTS = "model.safetensors"
NOT_USED = ("embed_tokens.", "lm_head.", "verifier_", "t2d")  # the target's, frozen


def load_network(path_or_id: str | Path, dtype: torch.dtype = torch.float32) -> DraftNetwork:
    """A drafter from a folder or from the hub. Raises ValueError in the user's words."""
    folder = find_drafter(path_or_id)
    try:
        values = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no drafter: it has no config.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None
    network = DraftNetwork(DraftConfig.from_json(values))
    weights = read_weights(folder)
    draft_ids = _draft_ids(weights, network.config)
    _fill(network, weights, folder)
    network.draft_ids = draft_ids
    return network.to(dtype).eval().requires_grad_(False)


def save_network(network: DraftNetwork, folder: str | Path, config: dict[str, Any]) -> None:
    """Write `network` in bfloat16 unless it is float32 already, with `config` as config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if network.draft_ids is not None:
        ids = network.draft_ids
        state["d2t"] = (ids - torch.arange(len(ids))).to(torch.int64)  # speculators' offsets
    unfinished = folder / (WEIGHTS + ".part")
    save_file(state, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors makes files that only their owner can read
    unfinished.replace(folder / WEIGHTS)  # a full disk or a kill leaves the old weights whole
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def find_drafter(path_or_id: str | Path) -> Path:
    """The drafter's folder, fetched from the hub if it is no path. ValueError if there is none."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if folder.exists() or str(path_or_id).startswith((".", "/", "~")) or "/" not in str(path_or_id):
        raise ValueError(f"{path_or_id} is no folder with a drafter's config.json and {WEIGHTS}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the drafter {path_or_id} could not be fetched: {reason}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, by name. ValueError if one is unreadable."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [
            file.name for suffix in ("bin", "pt", "pth") for file in folder.glob(f"*.{suffix}")
        ]
        if pickled:
            raise ValueError(
                f"{folder} holds pickled weights ({pickled[0]}), which can run code when opened; "
                "only safetensors are read: convert them first"
            )
        raise ValueError(f"{folder} has no {WEIGHTS}")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut short ({error}); fetch it again") from None
    return weights


def _draft_ids(weights: dict[str, Tensor], config: DraftConfig) -> Tensor | None:
    offsets = weights.pop("d2t", None)
    if offsets is None:
        return None
    if len(offsets) != config.draft_vocab_size:
        raise ValueError(
            f"the drafter's d2t map has {len(offsets)} entries, its config says draft_vocab_size "
            f"{config.draft_vocab_size}"
        )
    return offsets + torch.arange(len(offsets))


def _fill(network: DraftNetwork, weights: dict[str, Tensor], folder: Path) -> None:
    weights = {name: w for name, w in weights.items() if not name.startswith(NOT_USED)}
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - weights.keys()):
        raise ValueError(
            f"{folder} lacks the weights {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    if extra := sorted(weights.keys() - wanted.keys()):
        raise ValueError(
            f"{folder} holds weights that no DFlash drafter has: {', '.join(extra[:3])}"
        )
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"{folder}: {name} is {tuple(weights[name].shape)}, its config.json "
                f"asks for {tuple(tensor.shape)}"
            )
    network.load_state_dict(weights)
