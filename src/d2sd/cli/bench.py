"""`d2sd bench`: policies measured against each other."""

from __future__ import annotations

from typing import Annotated

from d2sd.cli.options import (
    DRAFTING,
    Json,
    ModelOptions,
    PromptsOptions,
    SamplingOptions,
    grouped,
    option,
)

Policies = Annotated[
    str,
    option(
        "--policies",
        DRAFTING,
        "Policies with their options, such as none,block,dual:branches=4,best-first:budget=64.",
        "LIST",
    ),
]


@grouped
def bench(
    prompts: PromptsOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    policies: Policies = "none,ngram,block,best-first,dual,merged,planned",
    as_json: Json = False,
) -> None:
    """Measure policies against each other on a file of prompts.

    Every prompt is answered with every policy in turn, in one process, through the same target.
    """
    from d2sd.bench.measure import measure
    from d2sd.cli.opening import opened, workload_of
    from d2sd.cli.tables import comparison_json, print_comparison
    from d2sd.cli.terminal import print_json, progress
    from d2sd.drafters.policies import parse_policies

    chosen, workload = parse_policies(policies), workload_of(prompts, sampling)
    session = opened(model, chosen)
    with progress("measuring", len(workload.prompts)) as on_prompt:
        comparison = measure(session, chosen, workload, on_prompt)
    run = session.provenance(workload.seed)
    if as_json:
        print_json(comparison_json(comparison, run))
    else:
        print_comparison(comparison, run)
