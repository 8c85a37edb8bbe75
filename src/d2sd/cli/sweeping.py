"""What `d2sd bench --backend openai` does: servers under rising load, and how that looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.table import Table

from d2sd.answers.endpoint import Connection, Endpoint, served_model
from d2sd.bench.sweep import Load, Run, Server, sweep
from d2sd.cli.bench import BenchOutput, BenchSampling, ServerOptions, SuiteOptions
from d2sd.cli.benching import prompts_of
from d2sd.cli.progress import meter
from d2sd.cli.served import base_url
from d2sd.cli.terminal import note, pages, print_json
from d2sd.provenance import provenance

FILE = "sweep.json"
HERE = torch.device("cpu")
"""Where the clients run; what the servers run on, they don't say."""


def swept(
    suites: SuiteOptions,
    sampling: BenchSampling,
    options: ServerOptions,
    output: BenchOutput,
) -> None:
    """Measure, print, and write where asked to."""
    if options.backend != "openai" or not options.base_url:
        raise ValueError(
            f"--backend is {options.backend!r} with {len(options.base_url)} --base-url; servers "
            "are measured by --backend openai --base-url URL"
        )
    clients = _numbers(options.concurrency)
    load = load_of(suites, sampling)
    servers = [_server(text) for text in options.base_url]
    if len({server.name for server in servers}) < len(servers):
        raise ValueError("two servers have one name; give names, as in --base-url plain=http://…")
    with meter("measuring, loads") as hear:
        runs = list(sweep(servers, load, clients, hear))
    facts = {"runs": [as_row(run, runs) for run in runs], "load": asdict(load)}
    facts |= {"answers": [asdict(run) for run in runs], "run": provenance(HERE, load.seed)}
    if output.as_json:
        print_json(facts)
    else:
        pages.print(table_of(runs))
    if output.out is not None:
        output.out.mkdir(parents=True, exist_ok=True)
        path = output.out / FILE
        path.write_text(json.dumps(facts, ensure_ascii=False) + "\n")
        note(f"wrote {path}")


def load_of(suites: SuiteOptions, sampling: BenchSampling) -> Load:
    """The first turns of all prompts, suite after suite."""
    found = prompts_of(suites, None)
    texts = tuple(prompt.turns[0] for prompts in found.values() for prompt in prompts)
    try:
        temperature = float(sampling.temperatures or 0)
    except ValueError:
        raise ValueError(
            f"--temperature is {sampling.temperatures!r}; servers are measured at one"
        ) from None
    return Load(texts, suites.max_new_tokens, temperature, sampling.seed)


def _server(text: str) -> Server:
    name, _, url = text.partition("=") if "=" in text.split("://", 1)[0] else (text, "", text)
    connection = Connection(Endpoint(base_url(url), tries=1))
    return Server(name, connection, served_model(connection, "a server of one model"))


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"--concurrency is {text!r}; give numbers such as 1,4,16")
    return found


def as_row(run: Run, runs: Sequence[Run]) -> dict[str, object]:
    """The figures of a run, and beside the first server's under the same load."""
    first = next(one for one in runs if one.clients == run.clients and one.server == runs[0].server)
    return {
        "server": run.server,
        "clients": run.clients,
        "tokens_per_second": run.tokens_per_second,
        "to_first": run.tokens_per_second / first.tokens_per_second,
        "first_token_seconds": run.first_token,
        "acceptance_length": run.acceptance_length,
        "same_texts": run.same_texts(first),
        "answers": len(run.answers),
    }


def table_of(runs: Sequence[Run]) -> Table:
    """One row per server and number of clients."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("clients", justify="right")
    table.add_column("server")
    names = ("tokens/s", f"× {runs[0].server}", "first text", "acceptance", "same text")
    for name in names:
        table.add_column(name, justify="right")
    for run in sorted(runs, key=lambda run: run.clients):
        row = as_row(run, runs)
        length = run.acceptance_length
        table.add_row(
            str(run.clients),
            run.server,
            f"{run.tokens_per_second:.1f}",
            f"{row['to_first']:.2f}",
            f"{run.first_token:.2f} s",
            "" if length is None else f"{length:.2f}",
            f"{row['same_texts']} of {len(run.answers)}",
        )
    return table
