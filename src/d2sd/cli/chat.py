"""`d2sd chat`: a conversation; the target keeps what it has read from turn to turn."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, fields
from typing import Annotated

from d2sd.cli.options import (
    ANSWER,
    Given,
    ModelOptions,
    PolicyOptions,
    SamplingOptions,
    grouped,
    option,
    policy_text,
)

SERVER = "Server"
LOCAL = {part.name for part in fields(ModelOptions)} - {"model"}
"""Options of a model that is loaded here."""


@dataclass(frozen=True)
class ChatOptions:
    """What every answer of the conversation shares."""

    system: Annotated[
        str | None, option("--system", ANSWER, "What the model is told before you speak.", "TEXT")
    ] = None
    max_new_tokens: Annotated[
        int, option("--max-new-tokens", ANSWER, "End an answer after this many tokens.", "N")
    ] = 1024


@dataclass(frozen=True)
class RemoteOptions:
    """A model that runs elsewhere."""

    server: Annotated[
        str | None,
        option(
            "--server",
            SERVER,
            "Talk with the model of a server that speaks OpenAI's protocol, such as d2sd serve.",
            "URL",
        ),
    ] = None
    key_variable: Annotated[
        str | None,
        option(
            "--key-variable", SERVER, "The environment variable that holds its API key.", "NAME"
        ),
    ] = None


@grouped
def chat(
    given: Given,
    model: ModelOptions,
    drafting: PolicyOptions,
    sampling: SamplingOptions,
    options: ChatOptions,
    remote: RemoteOptions,
) -> None:
    """Talk with the model.

    Ctrl-C stops an answer. /clear forgets the conversation, /exit or Ctrl-D ends it.
    """
    if remote.server is not None:
        values: dict[str, object] = {
            part.name: getattr(sampling, part.name)
            for part in fields(SamplingOptions)
            if part.name in given or part.name == "temperature"
        }
        if given & {"policy", "branches", "budget"}:
            values["policy"] = policy_text(drafting)
        if "model" in given:
            values["model"] = model.model
        _talk_there(remote, options, values, given & LOCAL)
    else:
        if remote.key_variable is not None:
            raise ValueError("--key-variable is for a server; give --server URL as well")
        _talk_here(model, drafting, sampling, options)


def _talk_here(
    model: ModelOptions, drafting: PolicyOptions, sampling: SamplingOptions, options: ChatOptions
) -> None:
    from d2sd.cli.opening import chosen_policy, opened, sampling_of
    from d2sd.cli.talking import LocalConversation, talk

    policy, draws = chosen_policy(drafting), sampling_of(sampling)
    session = opened(model, [policy])
    drafter = session.drafter(policy, draws.temperature)
    talk(LocalConversation(session, drafter, draws, options.max_new_tokens, options.system))


def _talk_there(
    remote: RemoteOptions, options: ChatOptions, values: dict[str, object], local: Set[str]
) -> None:
    from d2sd.answers.endpoint import Connection, Endpoint, key_from, served_model
    from d2sd.cli.served import ServedConversation, base_url
    from d2sd.cli.talking import talk

    if local:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(local))
        raise ValueError(f"the model runs on the server, where {named} cannot be set; leave it out")
    assert remote.server is not None
    connection = Connection(
        Endpoint(base_url(remote.server), key_from(remote.key_variable), tries=1)
    )
    values.setdefault("model", served_model(connection, "--model"))
    values["max_tokens"] = options.max_new_tokens
    talk(ServedConversation(connection, values, options.system))
