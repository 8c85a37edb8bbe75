"""The proving ground's target: one command's worth of training, resumable, usable as a model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from d2sd.train import proving_ground
from d2sd.train.proving_ground import LOG, read_exchanges, train_target
from d2sd.train.small_target import Exchange, SmallTarget

EXCHANGES = [
    Exchange(f"What is {a} plus {b}?", f"The sum of {a} and {b} is {a + b}.")
    for a in range(10)
    for b in range(10)
]
SHAPE = SmallTarget(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
    kv_heads=1,
    context=128,
    row=128,
    rows_per_step=4,
    steps=20,
    warmup=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_target(SHAPE, EXCHANGES, tmp_path_factory.mktemp("pg") / "target")


def test_the_folder_is_a_model_that_answers(trained):
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3 plus 4?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    answer = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > prompt.shape[1]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_curve_is_kept_beside_the_weights_and_falls(trained):
    lines = [json.loads(line) for line in (trained / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    assert lines[-1]["held_out_loss"] < lines[0]["held_out_loss"]


def test_a_killed_run_ends_where_an_undisturbed_one_ends(trained, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done, total, words):
        if done == 7:
            raise KilledError

    folder = tmp_path / "target"
    with pytest.raises(KilledError):
        train_target(SHAPE, EXCHANGES, folder, kill)
    assert not folder.exists()
    heard = []
    train_target(SHAPE, EXCHANGES, folder, lambda done, total, words: heard.append(done))
    assert heard[0] == 7  # the checkpoint of step 6 held
    for name in ("model.safetensors", LOG, "tokenizer.json"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_a_finished_target_is_not_trained_again(trained):
    def fail(done, total, words):
        raise AssertionError("trained again")

    assert train_target(SHAPE, EXCHANGES, trained, fail) == trained


def test_answers_are_read_as_text(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(2 * proving_ground.HELD_OUT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_exchanges(path)[1] == Exchange("p1", "r1")
    path.write_text(path.read_text() + '{"prompt": "no answer"}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl, line 97: no prompt and response"):
        read_exchanges(path)
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="holds 1 answers"):
        read_exchanges(path)
    with pytest.raises(ValueError, match="can't be read"):
        read_exchanges(tmp_path / "absent.jsonl")


def test_one_command_makes_a_target_and_both_drafters(tmp_path, monkeypatch, capsys):
    from d2sd.cli import run
    from d2sd.train import small_target

    monkeypatch.setattr(small_target, "SmallTarget", lambda: SHAPE)
    rows = [{"prompt": e.prompt, "response": e.response} for e in EXCHANGES]
    answers, out = tmp_path / "answers.jsonl", tmp_path / "ground"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["taps=[0,1]", "layers=1", "first.steps=2", "second.steps=2", "block_size=4"]
    settings += ["sequences_per_batch=2", "anchors_per_sequence=4", "max_length=120"]
    changes = [word for setting in settings for word in ("--set", setting)]
    command = ["proving-ground", str(answers), "--out", str(out), "--target-steps", "2", *changes]
    assert run(command) == 0
    written = {name: (out / name).read_bytes() for name in ("responses.jsonl",)}
    for name in ("first", "second"):
        assert (out / "drafters" / name / "model.safetensors").is_file()
    assert "d2sd regenerate" in capsys.readouterr().err
    assert run(command) == 0  # everything is there already
    assert (out / "responses.jsonl").read_bytes() == written["responses.jsonl"]
    folders = [str(out / "drafters" / name) for name in ("first", "second")]
    asked = ["generate", "What is 2 plus 2?", "--model", str(out / "target"), "--json"]
    asked += ["--drafter", folders[0], "--second-drafter", folders[1], "--max-new-tokens", "8"]
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] > 0
