"""`d2sd tune`: what passes cost on this machine, measured and stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from d2sd.cli.options import OUTPUT, Json, ModelOptions, grouped, option

if TYPE_CHECKING:
    from d2sd.session import Session
    from d2sd.tuning.measure import Scope
    from d2sd.tuning.store import StoredCosts

MEASURING = "Measuring"

Contexts = Annotated[
    str | None,
    option(
        "--contexts",
        MEASURING,
        "Context lengths in tokens. Default: 64,256,1024,4096, as far as the model reads.",
        "LIST",
    ),
]
Repeats = Annotated[
    int, option("--repeats", MEASURING, "Time every size this often; the median counts.", "N")
]
Force = Annotated[
    bool, option("--force", MEASURING, "Measure even where this was measured before.")
]
Plot = Annotated[
    Path | None,
    option("--plot", OUTPUT, "Draw the target's pass as a picture, too.", "FILE.png"),
]


@grouped
def tune(
    model: ModelOptions,
    contexts: Contexts = None,
    repeats: Repeats = 9,
    force: Force = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure what passes cost on this machine, and store it for later runs.

    The policy that plans each step reads it. Measured again when the model, the drafters, the
    device, the precision, the threads or the libraries are others.
    """
    from d2sd.cli.compiling import compile_session
    from d2sd.cli.costing import costs_json, print_costs
    from d2sd.cli.opening import opened
    from d2sd.cli.terminal import note, print_json
    from d2sd.drafters.policies import parse_policy
    from d2sd.tuning.store import cost_file, store_costs, stored_costs

    session = opened(model, [parse_policy(_needed(model))])
    scope = _scope(session, contexts, repeats)
    if model.compiled:
        compile_session(session)
    stored = None if force else stored_costs(session.cost_key)
    if stored is not None and stored.scope == scope:
        note(f"measured before, {stored.run['date']}; --force measures again")
    else:
        stored = _measured(session, scope)
        store_costs(session.cost_key, stored)
    file = cost_file(session.cost_key)
    if plot is not None:
        from d2sd.card.plots import draw_costs

        draw_costs(stored.table, plot)
        note(f"wrote {plot}")
    if as_json:
        print_json(costs_json(stored, session.cost_key, file))
    else:
        print_costs(stored, file)


def _needed(model: ModelOptions) -> str:
    """A policy that loads all drafters there are: without any, the target alone is measured."""
    from d2sd.models.resolve import shipped_drafters

    given = model.drafter or model.second_drafter or shipped_drafters(model.model)
    return "dual" if given else "none"


def _scope(session: Session, contexts: str | None, repeats: int) -> Scope:
    """What is asked for, checked before anything takes long."""
    from d2sd.tuning.measure import Scope, check_room

    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be 1 or more")
    if contexts is None:
        return Scope(repeats=repeats).within(session.target.context_limit)
    try:
        lengths = {int(part) for part in contexts.split(",")}
    except ValueError:
        raise ValueError(
            f"contexts are {contexts!r}; give whole numbers with commas, such as 64,1024"
        ) from None
    scope = Scope(tuple(sorted(lengths)), repeats=repeats)
    check_room(session.target, scope)
    return scope


def _measured(session: Session, scope: Scope) -> StoredCosts:
    from d2sd.cli.progress import meter

    with meter("measuring, passes") as hear:
        return session.measured_costs(scope, hear)
