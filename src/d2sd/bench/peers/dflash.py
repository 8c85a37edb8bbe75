"""The PyPI package `dflash` (0.1.0): its own loop, with the session's first drafter.

It pins exact versions of all it needs and runs with others, so no extra of ours names it: install
it by `pip install --no-deps dflash==0.1.0`. Greedy answers are the target's own. A drafter of a
reduced vocabulary drafts from the whole one there, and one that taps the target's last layer is
given it after the final norm; neither changes what is emitted, both what is accepted.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3Config
from transformers.utils import logging

from d2sd.bench.peers.watch import PassLog, Peer, check_plain, dtype_name, seeded, watched
from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork
from d2sd.generate import Request
from d2sd.session import Session

INSTALL = "pip install --no-deps dflash==0.1.0"


class DFlashPeer(Peer):
    """`dflash_generate` over the session's model."""

    def __init__(self, session: Session, package: Any) -> None:
        super().__init__("dflash", session)
        assert session.networks.first is not None
        self._package = package
        self._drafter = their_drafter(session.networks.first, session, package)
        self.arithmetic = f"{dtype_name(session)}, dflash 0.1.0 with the first drafter"

    def _generate(self, request: Request, room: int, log: PassLog) -> Sequence[int]:
        sampling, model = request.sampling, self._session.model
        if sampling.min_p:
            raise ValueError(f"dflash knows no min_p, which is {sampling.min_p}; set it to 0")
        with seeded(sampling, model.device), watched(model, log):
            ids = self._package.dflash_generate(
                self._drafter,
                model,
                torch.tensor([request.prompt], device=model.device),
                room,
                sorted(request.stop_tokens) or None,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
            )
        return ids[0, len(request.prompt) :].tolist()


def open_dflash(session: Session, assistant: str | None) -> Peer:
    """Raises ValueError where the package or a first drafter is missing."""
    check_plain(session)
    package = imported()
    if session.networks.first is None:
        raise ValueError("the session has no first drafter; give one with --drafter")
    return DFlashPeer(session, package)


def imported() -> Any:
    """The module with its loop. Raises ValueError where it is missing or cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its import says is its own business
            return importlib.import_module("dflash.model")
    except ImportError as error:
        raise ValueError(
            f"the package dflash cannot be imported ({error}); install it by {INSTALL} "
            "(it pins exact versions, so it is in none of d2sd's extras)"
        ) from None


def their_drafter(network: DraftNetwork, session: Session, package: Any) -> Any:
    """`network` as their class, on the target's device and in its dtype."""
    config = their_config(network.config, session.target.num_layers)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        drafter = package.DFlashDraftModel.from_pretrained(
            None, config=config, state_dict=dict(network.state_dict()), dtype=session.target.dtype
        )
    finally:
        logging.set_verbosity(verbosity)
    return drafter.to(session.target.device).eval()


def their_config(config: DraftConfig, num_target_layers: int) -> Qwen3Config:
    """What their class asks of a config.json in DFlash's layout."""
    values = config.network.to_dict()
    if len(set(config.causal)) == 1:  # otherwise the sliding layers are causal, as they have it
        values["is_causal"] = config.causal[0]
    values["num_target_layers"] = num_target_layers
    values["dflash_config"] = {
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.taps),
        "block_size": config.block_size,
        "input_embedding_scale": config.embedding_scale,
        "output_multiplier": config.output_multiplier,
        "final_logit_softcapping": config.logit_softcap,
    }
    return Qwen3Config(**values)
