"""`d2sd train` as its user meets it, on a tiny target; and killed in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch

from d2sd.cli import run
from d2sd.drafters.checkpoint import load_network
from trainings import arguments, evaluations, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def train(home, tmp_path, capsys):
    """Runs the command in this process; gives its exit code and what it said."""

    def command(*more, folder=tmp_path):
        code = run(arguments(home, folder, *more))
        return code, " ".join(capsys.readouterr().err.split())

    return command


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    """A folder in which both drafters were trained, undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(arguments(home, folder)) == 0
    return folder


def weights(folder):
    return {
        name: load_network(folder / "out" / name).state_dict()
        for name in ("first", "second")
        if (folder / "out" / name).is_dir()
    }


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name][key], other[name][key]) for name in one for key in one[name]
    )


def test_both_drafters_are_written_and_it_says_how_to_use_them(train, trained, tmp_path):
    code, said = train()
    assert code == 0
    assert "mask token 0 (<|endoftext|>, which no response holds)" in said
    assert f"--drafter {tmp_path / 'out' / 'first'} --second-drafter" in said
    assert equal(weights(tmp_path), weights(trained))
    settings = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (settings["layers"], settings["taps"], settings["mask_token_id"]) == (1, [2], 0)


def test_features_online_and_stored_teach_the_same(train, trained, tmp_path):
    code, said = train("--features", "stored")
    assert code == 0
    assert "bytes" in said
    assert (tmp_path / "work" / "store" / "store.json").is_file()
    for ours, theirs in zip(evaluations(tmp_path), evaluations(trained), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)


def test_settings_come_from_the_recipe_then_the_file_then_the_command_line(train, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("recipe: default\nfirst: {steps: 1, matrix_rate: 1e-3}\nseed: 5\nlayers: 2\n")
    assert train("--config", str(path), "--set", "seed=6", "--stage", "first")[0] == 0
    settings = json.loads((tmp_path / "work" / "recipe.json").read_text())
    assert settings["block_size"] == 4  # --set, over the recipe's 16
    assert settings["layers"] == 2  # the file's
    assert settings["first"]["steps"] == 6  # --set, over the file's 1
    assert settings["first"]["matrix_rate"] == 0.001
    assert settings["seed"] == 6
    assert settings["first"]["objective"] == "dpace"  # the recipe's


def test_the_second_one_alone_and_one_for_both(train, trained, tmp_path):
    first = str(trained / "out" / "first")
    code, said = train("--stage", "second", "--first", first)
    assert code == 0
    assert "--drafter FIRST --second-drafter" in said
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["second"]
    code, said = train("--stage", "one", "--start", first, folder=tmp_path / "one")
    assert code == 0
    assert f"--drafter {tmp_path / 'one' / 'out' / 'one'}" in said
    starts = [
        json.loads(line) for line in (tmp_path / "one/out/training.jsonl").read_text().splitlines()
    ]
    assert starts[0]["started"]["seed"] == 0


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--stage", "third"], "there is no stage 'third'; choose one of first, second, both, one"),
        (["--set", "lairs=2"], "there is no setting 'lairs'"),
        (["--set", "layers=9"], "layers is 9; the target has 4"),
        (["--recipe", "mine"], "there is no recipe 'mine'"),
        (["--features", "remembered"], "features is 'remembered'; choose online or stored"),
        (["--broken", "bend"], "broken is 'bend'; choose stop or skip"),
        (["--stage", "second"], "give one with --first FOLDER, or train both"),
        (["--first", "nowhere/at-all"], "could not be fetched"),
        (["--config", "nowhere.yaml"], "nowhere.yaml can't be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(train, more, complaint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, said = train(*more)
    assert code == 2
    assert complaint in said


def test_going_on_with_other_settings_is_refused(train, trained):
    code, said = train("--set", "clip=2", folder=trained)
    assert code == 2
    code, said = train("--set", "first.clip=2", folder=trained)
    assert code == 2
    assert "first.clip was 1.0 and is now 2.0" in said


KILLED = """
import os, signal, sys
from d2sd.cli import run
from d2sd.train import course

number = int(sys.argv[1])
made = course.Trainer.advance

def advance(trainer):
    global number
    number -= 1
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return made(trainer)

course.Trainer.advance = advance
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("step", [4, 8])
def test_a_killed_command_given_again_ends_with_the_same_drafters(
    train, home, trained, tmp_path, step
):
    command = [sys.executable, "-c", KILLED, str(step), *arguments(home, tmp_path)]
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    assert train()[0] == 0
    assert equal(weights(tmp_path), weights(trained))
    steps = [(line["stage"], line["step"]) for line in evaluations(tmp_path)]
    assert steps == [("first", 3), ("first", 6), ("second", 3), ("second", 4)]
