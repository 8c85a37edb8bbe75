"""`d2sd serve`: an OpenAI-compatible server, and a page where drafts are seen to be accepted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

from d2sd.cli.options import ModelOptions, PolicyOptions, grouped, option

SERVER = "Server"


@dataclass(frozen=True)
class ServerOptions:
    """Where it listens, and how much it takes on."""

    host: Annotated[
        str, option("--host", SERVER, "The address to listen on; 0.0.0.0 for all.", "ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[
        int, option("--port", SERVER, "The port to listen on; 0: a free one.", "PORT")
    ] = 8000
    api_key: Annotated[
        str | None,
        option(
            "--api-key",
            SERVER,
            "Ask for this key; better given as D2SD_API_KEY, which no process list shows.",
            "KEY",
        ),
    ] = None
    max_queue: Annotated[
        int, option("--max-queue", SERVER, "How many requests may wait; the next get 429.", "N")
    ] = 64
    max_tokens: Annotated[
        int, option("--max-tokens", SERVER, "The most new tokens an answer may have.", "N")
    ] = 1024
    timeout: Annotated[
        float, option("--timeout", SERVER, "Seconds a request may take, waiting included.", "S")
    ] = 600.0
    prefix_cache: Annotated[
        int,
        option("--prefix-cache", SERVER, "Megabytes for rows of earlier conversations.", "MB"),
    ] = 256
    grace: Annotated[
        float,
        option("--grace", SERVER, "Seconds to finish what was accepted once told to stop.", "S"),
    ] = 30.0


@grouped
def serve(model: ModelOptions, drafting: PolicyOptions, server: ServerOptions) -> None:
    """Serve the model: an OpenAI-compatible API under /v1, and a page at /.

    One answer is made at a time; others wait in a fair queue.
    """
    from d2sd.cli.opening import chosen_policy, opened
    from d2sd.cli.terminal import note

    try:
        from d2sd.serve.app import create_app
        from d2sd.serve.running import listening
        from d2sd.serve.running import serve as run
        from d2sd.serve.service import Limits, Service
    except ImportError as error:
        raise ValueError(
            f"the server needs {error.name}, which is not installed; pip install 'd2sd[serve]'"
        ) from None

    policy = chosen_policy(drafting)
    limits = Limits(
        server.max_queue, server.max_tokens, server.timeout, server.prefix_cache * 2**20
    )
    if not server.grace >= 0:
        raise ValueError(f"the grace time is {server.grace}; it must be 0 or more")
    key = server.api_key or os.environ.get("D2SD_API_KEY")
    with listening(server.host, server.port) as door:  # said before a model is loaded in vain
        service = Service(opened(model, [policy]), policy, limits)
        host, port, *_ = door.getsockname()
        shown = f"[{host}]" if ":" in host else host
        note(f"http://{shown}:{port} is open; Ctrl-C ends it")
        if key is None and not ip_address(host).is_loopback:
            note("whoever reaches this machine can use it; --api-key asks for a key")
        run(create_app(service, key), service, door, server.grace)
