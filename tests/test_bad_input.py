"""Bad input: one clear line on standard error, exit code 2, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from d2sd.cli import run
from folders import VOCAB, byte_tokenizer, save_drafter, save_target, write_prompts


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Good and bad folders, named for what they are."""
    home = tmp_path_factory.mktemp("home")
    save_target(home / "target")
    save_drafter(home / "drafter")
    save_drafter(home / "narrow", hidden_size=16)
    save_drafter(home / "wordy", vocab_size=VOCAB + 9)
    deep = {"mask_token_id": 0, "target_layer_ids": [1, 4]}
    save_drafter(home / "deep", dflash_config=deep)
    save_drafter(
        home / "masked", dflash_config={**deep, "target_layer_ids": [1], "mask_token_id": 999}
    )
    for good, bad in (("target", "cut-target"), ("drafter", "cut-drafter")):
        shutil.copytree(home / good, home / bad)
        weights = home / bad / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    for good, bad in (("target", "pickled-target"), ("drafter", "pickled-drafter")):
        shutil.copytree(home / good, home / bad)
        (home / bad / "model.safetensors").unlink()
        torch.save({}, home / bad / "pytorch_model.bin")
    for good, bad in (("target", "empty-target"), ("drafter", "empty-drafter")):
        shutil.copytree(home / good, home / bad)
        (home / bad / "model.safetensors").unlink()
    shutil.copytree(home / "target", home / "wordless")
    (home / "wordless" / "chat_template.jinja").unlink()
    _save_windowed(home / "windowed")
    write_prompts(home / "prompts.jsonl", ["hello"])
    (home / "broken.jsonl").write_text('{"id": "1", "turns": ["a"]}\n{"id": "2", "turns": [')
    return home


def _save_windowed(folder: Path) -> None:
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


GENERATE = "generate hello --max-new-tokens 4 --device cpu"
NONE = f"{GENERATE} --policy none --model"
BLOCK = f"{GENERATE} --policy block --model {{home}}/target --drafter"
MEASURED = "--model {home}/target --device cpu --prompts"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # drafter and target do not fit
        (f"{BLOCK} {{home}}/narrow", "has hidden size 16, the target"),
        (f"{BLOCK} {{home}}/wordy", f"knows {VOCAB + 9} tokens, the target"),
        (f"{BLOCK} {{home}}/deep", "reads layer 4, the target"),
        (f"{BLOCK} {{home}}/masked", "masks with token 999"),
        (
            f"{GENERATE} --model {{home}}/target --drafter {{home}}/drafter "
            "--second-drafter {home}/narrow",
            "the second drafter",
        ),
        # weights
        (f"{BLOCK} {{home}}/cut-drafter", "cut short"),
        (f"{BLOCK} {{home}}/pickled-drafter", "pickled weights"),
        (f"{BLOCK} {{home}}/empty-drafter", "has no model.safetensors"),
        (f"{BLOCK} {{home}}/nowhere", "is no folder"),
        (f"{NONE} {{home}}/cut-target", "incomplete or broken"),
        (f"{NONE} {{home}}/pickled-target", "pickled weights"),
        (f"{NONE} {{home}}/empty-target", "has no weights"),
        (f"{NONE} {{home}}/nowhere", "does not exist"),
        (f"{NONE} {{home}}/windowed", "cannot be a target: it has sliding-window"),
        # what is missing
        (f"{GENERATE} --model {{home}}/target --policy dual", "policy 'dual' needs a drafter"),
        (f"{BLOCK[:-10]} --second-drafter {{home}}/drafter", "give --drafter as well"),
        (f"{NONE} {{home}}/wordless --dtype float32", "no chat template; use --raw"),
        # numbers and names
        (f"{NONE} {{home}}/target --temperature -1", "temperature is -1.0"),
        (f"{NONE} {{home}}/target --top-p 0", "top_p is 0.0"),
        (f"{NONE} {{home}}/target --top-k -2", "top_k is -2"),
        (f"{NONE} {{home}}/target --min-p 1", "min_p is 1.0"),
        (f"{NONE} {{home}}/target --dtype float32 --max-new-tokens 0", "max_new_tokens is 0"),
        (f"{NONE} {{home}}/target --dtype float8", "dtype 'float8' is unknown"),
        (f"{NONE} {{home}}/target --device moon", "device 'moon' is unknown"),
        (f"{GENERATE} --policy best", "unknown policy 'best'"),
        (f"{GENERATE} --policy none --branches 3", "policy 'none' has no option 'branches'"),
        (f"{GENERATE} --branches 0", "branches"),
        (f"{GENERATE} --branches two", "--branches"),
        (f"{GENERATE} --tempo 3", "--tempo"),
        ("generate", "prompt"),
        ("genrate hello", "genrate"),
        # prompts
        (f"bench {MEASURED} {{home}}/broken.jsonl --policies none", "broken.jsonl, line 2"),
        (f"verify {MEASURED} {{home}}/broken.jsonl --policy none", "broken.jsonl, line 2"),
        (f"verify {MEASURED} {{home}}/nothing.jsonl --policy none", "cannot be read"),
        (f"bench {MEASURED} {{home}}/prompts.jsonl --limit 0", "limit is 0"),
        (f"bench {MEASURED} {{home}}/prompts.jsonl --policies none,better", "'better'"),
        (f"bench {MEASURED} {{home}}/prompts.jsonl --dtype float32 --policies none,none", "twice"),
        (
            f"verify {MEASURED} {{home}}/prompts.jsonl --policy none --dtype bfloat16 "
            "--temperature 1",
            "cannot be verified",
        ),
    ],
)
def test_one_sentence_and_exit_code_2(home: Path, capsys, line: str, words: str) -> None:
    assert run(line.format(home=home).split()) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    *notes, sentence = errors.splitlines()
    assert sentence.startswith("d2sd: ")
    assert words in sentence
    assert "Traceback" not in errors
    assert notes == []


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(home: Path, capsys, prompt: str) -> None:
    arguments = ["--model", str(home / "target"), "--policy", "none"]
    assert run(["generate", prompt, *arguments]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_prompt_beyond_the_context_is_refused(home: Path, capsys) -> None:
    arguments = ["--model", str(home / "target"), "--policy", "none"]
    assert run(["generate", "x" * 300, *arguments]) == 2
    error = capsys.readouterr().err
    assert "the target's context holds 256" in error
    assert "shorten the prompt" in error


def test_a_gpu_that_is_not_there_is_said(home: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--model", str(home / "target"), "--policy", "none", "--device", "cuda"]
    assert run(["generate", "hello", *arguments]) == 2
    assert "no GPU is there" in capsys.readouterr().err
