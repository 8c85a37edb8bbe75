"""One target, its tokenizer and its drafters, loaded and checked to fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.network import DraftNetwork
from d2sd.drafters.policies import Policy, build_drafter, parse_policy
from d2sd.drafters.proposer import NetworkProposer
from d2sd.interfaces import Drafter
from d2sd.models.resolve import resolve, shipped_drafters
from d2sd.provenance import provenance
from d2sd.target.hf import HFTarget
from d2sd.target.load import load_model

Tell = Callable[[str], None]
"""Is told what happens, in a few words: a download, a stand-in."""

Message = dict[str, str]
"""One turn of a conversation: its role and its content."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, where and in which precision. None and "auto" choose by themselves.

    Automatic drafters are the ones that d2sd ships for the model; the automatic device is the GPU
    where there is one; the automatic dtype is float32 on the CPU and bfloat16 on a GPU.
    """

    model: str = "smollm2-135m"
    drafter: str | None = None
    second_drafter: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def torch_device(self) -> torch.device:
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(f"device {name!r} is unknown; choose auto, cpu or cuda") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {name!r} was asked for and no GPU is there; choose cpu")
        return device

    def torch_dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.float32 if self.torch_device().type == "cpu" else torch.bfloat16
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown; choose {' or '.join(DTYPES)}")
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Networks:
    """The drafter networks of both passes; one network may serve both."""

    first: DraftNetwork | None = None
    second: DraftNetwork | None = None
    first_name: str = "the first drafter"
    second_name: str = "the second drafter"

    @property
    def taps(self) -> tuple[int, ...]:
        """The target layers that the networks want the features of, in the first one's order."""
        wanted = [tap for net in (self.first, self.second) if net for tap in net.config.taps]
        return tuple(dict.fromkeys(wanted))

    def drafter(self, policy: Policy, target: HFTarget) -> Drafter:
        """A fresh drafter for one sequence of `target`, whose taps hold all of `taps`."""
        first = _proposer(self.first, target)
        second = first if self.second is self.first else _proposer(self.second, target)
        return build_drafter(policy, first, second)


@dataclass(frozen=True)
class UnboundDrafter:
    """A policy and its networks, waiting for the target whose sequence they will draft."""

    policy: Policy
    networks: Networks

    @property
    def taps(self) -> tuple[int, ...]:
        """The target layers it wants the features of."""
        return self.networks.taps

    def __call__(self, target: HFTarget) -> Drafter:
        """Raises ValueError when a network was made for another target."""
        check_fit(self.networks, target)
        return self.networks.drafter(self.policy, target)


def load_drafter(
    policy: str = "dual", first: str | Path | None = None, second: str | Path | None = None
) -> UnboundDrafter:
    """A drafting policy with the networks in folders or under hub ids, for `custom_generate`.

    Without `second`, the first network serves both passes.
    """
    return UnboundDrafter(parse_policy(policy), _load_networks(first, second))


@dataclass(frozen=True)
class Session:
    """Everything an answer needs. Serves one sequence at a time."""

    name: str
    model: Any
    target: HFTarget
    tokenizer: Any
    networks: Networks

    def drafter(self, policy: Policy | str) -> Drafter:
        """A fresh drafter for this target, such as `drafter("dual:branches=4")`."""
        if isinstance(policy, str):
            policy = parse_policy(policy)
        return self.networks.drafter(policy, self.target)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The model's and the tokenizer's ends of an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in (*ends, self.tokenizer.eos_token_id) if end is not None)

    def provenance(self, seed: int) -> dict[str, object]:
        """Where a figure of this session comes from, ready for JSON."""
        dtype = str(self.target.dtype).removeprefix("torch.")
        return {**provenance(self.target.device, seed), "model": self.name, "dtype": dtype}

    def chat_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation in the model's chat template, ready for the next answer."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template; use --raw to continue the "
                "prompt as plain text"
            )
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return self._ids(text, add_special_tokens=False)

    def raw_prompt(self, text: str) -> tuple[int, ...]:
        """Plain text, with the tokenizer's own first token where it has one."""
        return self._ids(text, add_special_tokens=True)

    def _ids(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        ids = tuple(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
        if ids and max(ids) >= self.target.vocab_size:
            raise ValueError(
                f"the tokenizer of {self.name} gives token {max(ids)}, the model knows "
                f"{self.target.vocab_size} tokens; they do not belong together"
            )
        return ids


def open_session(
    choice: ModelChoice, policies: Sequence[Policy | str], tell: Tell = lambda words: None
) -> Session:
    """Load what `policies` need: drafters first, because they name the layers to tap.

    Raises ValueError, one sentence that names the value and the fix, for whatever does not exist,
    is damaged or does not fit.
    """
    wanted = [parse_policy(policy) if isinstance(policy, str) else policy for policy in policies]
    device, dtype = choice.torch_device(), choice.torch_dtype()
    networks = Networks()
    if needed := max((policy.proposers for policy in wanted), default=0):
        first, second = _drafter_paths(choice, needed, tell)
        networks = _load_networks(first, second)
        if networks.first is None:
            for policy in wanted:
                build_drafter(policy, None, None)  # says what is missing before the model loads
    folder = resolve(choice.model, tell)
    model = load_model(folder, dtype).to(device)
    check_fit(networks, HFTarget(model))
    target = HFTarget(model, networks.taps)
    session = Session(choice.model, model, target, load_tokenizer(folder), networks)
    for policy in wanted:
        session.drafter(policy)  # what cannot be built is said before anything is generated
    return session


def load_tokenizer(folder: str) -> Any:
    """The tokenizer that lies beside a model."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the tokenizer of {folder!r} cannot be loaded: {reason}") from error


def check_fit(networks: Networks, target: HFTarget) -> None:
    """Raises ValueError when a network was made for another target than this one."""
    if networks.first is not None:
        _check_network(networks.first, networks.first_name, target)
    if networks.second is not None:
        _check_network(networks.second, networks.second_name, target)


def _check_network(network: DraftNetwork, name: str, target: HFTarget) -> None:
    config = network.config
    fix = "choose the drafter that was trained for this target"
    if config.hidden_size != target.hidden_size:
        raise ValueError(
            f"{name} has hidden size {config.hidden_size}, the target {target.name} has "
            f"{target.hidden_size}; {fix}"
        )
    if config.vocab_size != target.vocab_size:
        raise ValueError(
            f"{name} knows {config.vocab_size} tokens, the target {target.name} knows "
            f"{target.vocab_size}; {fix}"
        )
    if config.mask_token_id >= len(target.embed):
        raise ValueError(
            f"{name} masks with token {config.mask_token_id}, the target {target.name} embeds "
            f"{len(target.embed)} tokens; {fix}"
        )
    if max(config.taps) >= target.num_layers:
        raise ValueError(
            f"{name} reads layer {max(config.taps)}, the target {target.name} has layers 0 to "
            f"{target.num_layers - 1}; {fix}"
        )


def _drafter_paths(
    choice: ModelChoice, needed: int, tell: Tell
) -> tuple[str | Path | None, str | Path | None]:
    """What to load for both passes; nothing where nothing is given or shipped."""
    if choice.second_drafter and not choice.drafter:
        raise ValueError(
            f"a second drafter {choice.second_drafter!r} is given without a first; "
            "give --drafter as well"
        )
    if choice.drafter is None:
        return shipped_drafters(choice.model) or (None, None)
    if needed == 2 and choice.second_drafter is None:
        tell(f"no second drafter is given: {choice.drafter} serves both passes")
    return choice.drafter, choice.second_drafter


def _load_networks(first: str | Path | None, second: str | Path | None) -> Networks:
    if first is None:
        return Networks()
    network = load_network(first)
    names = f"the first drafter {str(first)!r}", f"the second drafter {str(second or first)!r}"
    if second is None or Path(second) == Path(first):
        return Networks(network, network, *names)
    return Networks(network, load_network(second), *names)


def _proposer(network: DraftNetwork | None, target: HFTarget) -> NetworkProposer | None:
    if network is None:
        return None
    network.to(device=target.device, dtype=target.dtype)
    return NetworkProposer(network, target.embed, target.head, target.taps)
