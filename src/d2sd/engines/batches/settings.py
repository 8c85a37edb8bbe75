"""What a user says of the drafters to an engine: to vLLM `--additional-config '{"d2sd": {…}}'`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d2sd.drafters.policies import Policy, parse_policy

KEY = "d2sd"
POLICIES = ("planned", "merged", "best-first", "block")


@dataclass(frozen=True)
class Settings:
    """The drafters' folders or hub ids, how they draft, and the most nodes of a request's tree."""

    first: str
    second: str | None
    policy: Policy
    budget: int

    @classmethod
    def of(cls, additional: Mapping[str, Any], nodes: int) -> Settings:
        """From vLLM's additional config and its `num_speculative_tokens`. Raises ValueError."""
        values = additional.get(KEY)
        if not isinstance(values, Mapping) or not isinstance(values.get("first"), str):
            raise ValueError(
                "d2sd is told its drafters by --additional-config "
                '\'{"d2sd": {"first": "FOLDER", "second": "FOLDER"}}\'; there is no "first"'
            )
        if unknown := sorted(values.keys() - {"first", "second", "policy"}):
            raise ValueError(
                f"the additional config of d2sd has {unknown[0]!r}; it knows first, second, policy"
            )
        policy = parse_policy(str(values.get("policy", "planned")))
        if policy.name not in POLICIES:
            raise ValueError(
                f"policy {policy.name!r} does not draft for a batch; choose one of "
                f"{', '.join(POLICIES)}"
            )
        budget = min(nodes, int(policy.options.get("budget", nodes)))
        return cls(values["first"], values.get("second"), policy, budget)
