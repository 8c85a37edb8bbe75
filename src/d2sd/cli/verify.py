"""`d2sd verify`: the lossless audit on your own model and prompts."""

from __future__ import annotations

import typer

from d2sd.cli.options import (
    Json,
    ModelOptions,
    PolicyOptions,
    PromptsOptions,
    SamplingOptions,
    grouped,
)


@grouped
def verify(
    prompts: PromptsOptions,
    model: ModelOptions,
    drafting: PolicyOptions,
    sampling: SamplingOptions,
    as_json: Json = False,
) -> None:
    """Check that a policy's tokens are the ones the model says by itself.

    Prints the verdict as JSON. The exit code is 1 when a token is wrong.
    """
    from d2sd.bench.audit import audit
    from d2sd.cli.opening import chosen_policy, opened, workload_of
    from d2sd.cli.tables import audit_json, print_verdict
    from d2sd.cli.terminal import print_json, progress

    policy, workload = chosen_policy(drafting), workload_of(prompts, sampling)
    session = opened(model, [policy], exact=True)
    with progress(f"verifying {policy.text}", len(workload.prompts)) as on_prompt:
        verdict = audit(session, policy, workload, on_prompt)
    print_json(audit_json(verdict, session.provenance(workload.seed)))
    if not as_json:
        print_verdict(verdict)
    if not verdict.lossless:
        raise typer.Exit(1)
