"""`d2sd evaluate` on a tiny model: what it reports, what it fits, and what a kill leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d2sd.bench.acceptance import Depth, depths, figures, groups, sources
from d2sd.bench.evaluation import (
    Evaluation,
    KeptReplays,
    fingerprint,
    fit,
    replay_all,
    with_temperatures,
)
from d2sd.bench.replay import Replayed, ReplayedStep, replay
from d2sd.cli import run
from d2sd.drafters.policies import parse_policies
from d2sd.networks import Networks
from d2sd.session import ModelChoice, Session, open_session
from d2sd.train.responses import Response
from folders import save_drafter, save_target

POLICIES = tuple(parse_policies("block,dual:branches=2,merged:budget=6"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A target, two drafters, and answers of which the drafters guess some."""
    home = tmp_path_factory.mktemp("home")
    found = {
        "target": save_target(home / "target"),
        "first": save_drafter(home / "first", seed=1),
        "second": save_drafter(home / "second", seed=2),
        "answers": home / "answers.jsonl",
    }
    session = opened(found)
    rows = [
        {
            "id": number,
            "kind": ("gsm8k", "chat")[number % 2],
            "temperature": (0.0, 0.0, 0.8, 0.8)[number % 4],
            "prompt_ids": [1, 70 + number, 104],
            "response_ids": guessed(session, (1, 70 + number, 104), 12),
        }
        for number in range(12)
    ]
    found["answers"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def opened(folders: dict[str, Path]) -> Session:
    names = [str(folders[name]) for name in ("target", "first", "second")]
    return open_session(ModelChoice(*names, device="cpu"), POLICIES)


def guessed(session: Session, prompt: tuple[int, ...], count: int) -> list[int]:
    """An answer made of drafts: of every block the first two tokens come true, then 99."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        context = session.target.prefill(tokens)
        tree = session.drafter("block").draft(context)
        tokens += [*tree.tokens[1:3], 99]
    return tokens[len(prompt) : len(prompt) + count]


@pytest.fixture
def d2sd(folders, capsys):
    def command(line: str):
        code = run([word.format(**folders) for word in line.split()])
        return code, *capsys.readouterr()

    return command


ON_TINY = (
    "{answers} --model {target} --drafter {first} --second-drafter {second} --device cpu "
    "--policies block,dual:branches=2,merged:budget=6"
)


def without_run(values: dict[str, object]) -> dict[str, object]:
    """All but where and when."""
    return {name: value for name, value in values.items() if name != "run"}


def test_the_json_tells_kinds_and_temperatures_apart(d2sd) -> None:
    code, out, _ = d2sd(f"evaluate {ON_TINY} --json")
    assert (code, out.count("\n")) == (0, 1)
    values = json.loads(out)
    assert values.keys() == {"responses", "groups", "fit", "run"}
    assert [(g["kind"], g["temperature"], g["answers"]) for g in values["groups"]] == [
        ("all", 0.0, 6), ("chat", 0.0, 3), ("gsm8k", 0.0, 3),
        ("all", 0.8, 6), ("chat", 0.8, 3), ("gsm8k", 0.8, 3),
    ]  # fmt: skip
    whole, *kinds = values["groups"][:3]
    assert whole["policies"].keys() == {"block", "dual:branches=2", "merged:budget=6"}
    block = whole["policies"]["block"]
    assert block["tokens"] == 6 * 12 == sum(n * c for n, c in enumerate(block["histogram"]))
    assert block["acceptance_length"]["mean"] == block["tokens"] / block["steps"] > 2.5
    assert [d["accepted"] / d["reached"] for d in block["depths"][:3]] == [1.0, 1.0, 0.0]
    assert set(whole["policies"]["dual:branches=2"]["sources"]) == {"first", "second"}
    assert whole["honesty"]["block"]["second"] is None
    assert len(whole["honesty"]["block"]["boundaries"]) == 5
    means = [kind["policies"]["block"]["acceptance_length"]["mean"] for kind in kinds]
    assert whole["mean_over_kinds"]["block"] == pytest.approx(sum(means) / 2)
    assert values["run"].keys() >= {"command", "commit", "versions", "device", "seed", "dtype"}


def test_limits_choose_answers_and_cut_them(d2sd) -> None:
    _, out, _ = d2sd(f"evaluate {ON_TINY} --limit 1 --max-tokens 5 --json")
    found = json.loads(out)["groups"]
    assert [(g["kind"], g["answers"], g["tokens"]) for g in found] == [
        ("all", 2, 10), ("chat", 1, 5), ("gsm8k", 1, 5),
    ] * 2  # fmt: skip
    _, out, _ = d2sd(f"evaluate {ON_TINY} --held-out 3 --json")
    assert sum(g["answers"] for g in json.loads(out)["groups"] if g["kind"] == "all") == 3


def test_the_table_names_every_kind(d2sd) -> None:
    code, out, _ = d2sd(f"evaluate {ON_TINY} --limit 1")
    assert code == 0
    for words in ("temperature 0.8", "gsm8k", "chat", "all", "nodes a step", "calibration error"):
        assert words in out


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("after", [1, 4, 8])
def test_a_killed_evaluation_goes_on_to_the_same_result(
    d2sd, tmp_path, monkeypatch, after: int
) -> None:
    undisturbed = json.loads(d2sd(f"evaluate {ON_TINY} --limit 1 --json")[1])
    done = []

    def dying(*arguments: object) -> Replayed:
        if len(done) == after:
            raise KilledError
        done.append(arguments[1:4:2])
        return replay(*arguments)

    monkeypatch.setattr("d2sd.bench.evaluation.replay", dying)
    out = tmp_path / "deep" / "out.json"
    with pytest.raises(KilledError):
        d2sd(f"evaluate {ON_TINY} --limit 1 --out {out}")
    partial = out.with_name("out.json.partial.jsonl")
    with partial.open("a") as file:
        file.write('{"cut short": {"steps": [')
    assert not out.exists()
    before = list(done)
    done.clear()
    after = 99
    assert d2sd(f"evaluate {ON_TINY} --limit 1 --out {out}")[0] == 0
    assert len(before) + len(done) == 4 * 3  # nothing is replayed twice
    assert without_run(json.loads(out.read_text())) == without_run(undisturbed)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.json"]


def test_what_was_kept_of_other_weights_is_not_taken(folders, tmp_path) -> None:
    session = opened(folders)
    other = replace(session, networks=Networks(session.networks.second, session.networks.first))
    cooler = replace(session, networks=with_temperatures(session.networks, None))
    fitted = replace(session.networks.first.config, temperatures={0.0: (2.0,)})
    cooler.networks.first.config = fitted
    prints = {fingerprint(s) for s in (session, other, cooler)}
    assert len(prints) == 3
    assert fingerprint(opened(folders)) == fingerprint(session)
    kept = KeptReplays(tmp_path / "kept.jsonl")
    evaluation = Evaluation((Response((1, 2), (3, 4, 5), 0.0),), POLICIES)
    replay_all(session, evaluation, kept)
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3
    replay_all(cooler, evaluation, KeptReplays(tmp_path / "kept.jsonl"))
    replay_all(session, evaluation, KeptReplays(tmp_path / "kept.jsonl"))
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 6


def test_fitted_temperatures_reach_the_drafters(d2sd, folders, tmp_path) -> None:
    own = {name: save_drafter(tmp_path / name, seed) for seed, name in ((1, "a"), (2, "b"))}
    line = ON_TINY.replace("{first}", str(own["a"])).replace("{second}", str(own["b"]))
    code, out, _ = d2sd(f"evaluate {line} --limit 2 --fit --json")
    assert code == 0
    fitted = json.loads(out)["fit"]
    assert [len(fitted[when]) for when in ("before", "after")] == [2, 2]
    errors = [fitted[when][0]["honesty"]["block"]["first"]["error"] for when in ("before", "after")]
    assert errors[1] < 0.8 * errors[0]  # on answers that were not fitted on
    for name, key in (("a", "first"), ("b", "second")):
        written = json.loads((own[name] / "config.json").read_text())["dflash_config"]
        assert {float(t): v for t, v in written["temperatures"].items()} == {
            float(t): v for t, v in fitted[key].items()
        }
        assert set(written["temperatures"]) == {"0", "0.8"}
    assert json.loads(d2sd(f"evaluate {line} --limit 2 --fit --json")[1])["fit"] == fitted
    again = json.loads(d2sd(f"evaluate {line} --limit 2 --json")[1])["groups"][0]
    plain = json.loads(d2sd(f"evaluate {line} --limit 2 --uncalibrated --json")[1])["groups"][0]
    assert plain["honesty"] == fitted["before"][0]["honesty"]
    assert again["honesty"]["block"]["first"]["error"] < 0.8 * errors[0]


def test_one_drafter_for_both_passes_is_fitted_on_both(folders) -> None:
    session = opened(folders)
    alone = replace(session, networks=Networks(session.networks.first, session.networks.first))
    answers = tuple(
        Response((1, 70 + n), tuple(guessed(session, (1, 70 + n), 12)), 0.0) for n in range(4)
    )
    evaluation = Evaluation(answers, POLICIES, curves=True)
    kept = KeptReplays(None)
    found = fit(alone, evaluation, replay_all(alone, evaluation, kept), kept)
    assert found.first == found.second
    assert found.first_slots == found.second_slots
    apart = fit(session, evaluation, replay_all(session, evaluation, kept), kept)
    assert found.first_slots[0.0][0] > apart.first_slots[0.0][0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evaluate {answers} --model {target} --fit", "give their folders with --drafter"),
        ("evaluate {answers} --model {target} --limit 0", "--limit is 0; it must be 1 or more"),
        ("evaluate {answers} --model {target} --policies magic", "unknown policy 'magic'"),
        ("evaluate {target} --model {target}", "can't be read"),
    ],
)
def test_user_errors_are_one_sentence(d2sd, line: str, words: str) -> None:
    code, out, err = d2sd(line)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def step(known: int, accepted: int, depth: int, sources: str = "first") -> ReplayedStep:
    return ReplayedStep(
        known, min(accepted + 1, known), (sources,) * accepted, {sources: depth}, depth
    )


def test_depths_count_only_where_the_answer_goes_on() -> None:
    steps = [step(9, 2, 3), step(9, 0, 3), step(2, 2, 3), step(1, 0, 3)]
    assert depths(steps) == (Depth(1, 4, 2), Depth(2, 2, 2), Depth(3, 1, 0))


def test_figures_weigh_tokens_and_answers() -> None:
    long = Replayed((step(6, 2, 3), step(3, 2, 3)))
    short = Replayed((step(1, 0, 3),))
    found = figures([long, short])
    assert found.acceptance_length.mean == pytest.approx(7 / 3)
    assert found.per_answer.mean == pytest.approx((3 + 1) / 2)
    assert found.histogram == (0, 1, 0, 2)
    assert found.acceptance_length.low == pytest.approx(1)
    assert found.acceptance_length.high == pytest.approx(3)


def test_the_interval_is_that_of_the_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    accepted = torch.randint(0, 6, (400,), generator=rng).tolist()
    found = figures([Replayed((step(9, count, 5),)) for count in accepted]).per_answer
    spread = 1.96 * torch.tensor(accepted, dtype=torch.float64).std() / 20
    assert found.high - found.mean == pytest.approx(float(spread), rel=0.15)
    assert found.mean - found.low == pytest.approx(float(spread), rel=0.15)


def test_sources_are_told_without_what_they_kept() -> None:
    steps = [
        ReplayedStep(9, 3, ("first", "second@1+1"), {"first": 6, "second@1+1": 2}, 3),
        ReplayedStep(9, 2, ("second@3",), {"second@3": 1, "second@2": 1}, 3),
    ]
    found = sources(steps)
    assert {name: share.nodes for name, share in found.items()} == {
        "first": 0.6, "second": 0.2, "second+1": 0.2,
    }  # fmt: skip
    assert found["second+1"].accepted == pytest.approx(1 / 3)


def test_kinds_of_one_temperature_stand_together() -> None:
    responses = [Response((1,), (2, 3), t, kind) for kind in "ab" for t in (0.0, 1.0)]
    replays = {"block": [Replayed((step(9, n, 5),)) for n in range(4)]}
    found = groups(responses, replays)
    assert [(g.temperature, g.kind) for g in found] == [
        (0.0, "all"), (0.0, "a"), (0.0, "b"), (1.0, "all"), (1.0, "a"), (1.0, "b"),
    ]  # fmt: skip
    assert found[3].mean_over_kinds == {"block": 3.0}
