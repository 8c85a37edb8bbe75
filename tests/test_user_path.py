"""docs/train-your-own.md, followed word for word on a tiny random Qwen3; and kill -9 on the way."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from d2sd.cli import run
from folders import VOCAB, byte_tokenizer

PAGE = Path(__file__).parents[1] / "docs/train-your-own.md"

TINY = {
    "regenerate": ["--max-new-tokens", "16", "--dtype", "float32"],
    "train": [
        *("--set", "first.steps=6", "--set", "second.steps=4", "--set", "block_size=4"),
        *("--set", "validation=4", "--set", "evaluate_every=3", "--set", "layers=1"),
        *("--set", "sequences_per_batch=4", "--set", "anchors_per_sequence=4"),
    ],
    "evaluate": ["--policies", "block,dual,merged:budget=8"],
    "generate": ["--max-new-tokens", "12", "--dtype", "float32", "--compare", "--json"],
}
"""What the page leaves to its reader: sizes. The commands themselves are the page's."""


def commands():
    """The page's commands, as lists of words without the leading `d2sd`."""
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line]


def save_qwen3(folder):
    """A random Qwen3 that speaks the byte tokenizer."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with a target M and two prompt files, and the reader in it."""
    save_qwen3(tmp_path / "M")
    for name, count in (("prompts", 24), ("suite", 4)):
        lines = [
            {"id": f"{name}-{i}", "kind": name, "prompt": f"Tell me about {name} number {i}."}
            for i in range(count)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_the_five_steps():
    names = [command[0] for command in commands()]
    assert names == ["regenerate", "train", "regenerate", "evaluate", "card", "export", "generate"]


def test_a_users_path_from_prompts_to_faster_answers(workplace, capsys):
    for command in commands():
        code = run([*command, *TINY.get(command[0], [])])
        said = capsys.readouterr()
        assert code == 0, (command, said.err)
    answer = json.loads(said.out)
    assert answer["new_tokens"] > 0
    assert answer["compare"]["identical"] is True
    mine = workplace / "runs/mine"
    card = (mine / "drafters/README.md").read_text()
    found = json.loads((mine / "evaluation.json").read_text())
    assert "acceptance length" in card
    assert found
    assert (mine / "speculators/model.safetensors").is_file()
