"""A tiny target, random drafters for it, and a vLLM that answers cases: a plugin of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from d2sd.drafters.checkpoint import save_network
from drafters import drafter_json, random_network

HERE = Path(__file__).parent
WORKER = "d2sd.engines.vllm.worker.CPUTreeWorker"
VOCAB, HIDDEN = 512, 128


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random Qwen3 target with heads that vLLM's CPU attention takes, and two drafters."""
    where = tmp_path_factory.mktemp("tiny")
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.12,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Qwen3ForCausalLM(config).eval().save_pretrained(where / "target")
    shape = {
        "hidden_size": HIDDEN,
        "head_dim": 32,
        "vocab_size": VOCAB,
        "num_target_layers": 4,
        "block_size": 8,
        "max_position_embeddings": 1024,
        "dflash_config": {"mask_token_id": VOCAB - 1, "target_layer_ids": [0, 2]},
    }
    for seed, name in enumerate(("first", "second")):
        save_network(random_network(seed, **shape), where / name, drafter_json(**shape))
    return where


class Engine:
    """vLLM in a process of its own; every case is a fresh engine there."""

    def __init__(self, folder):
        self.folder = folder
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            text=True,
        )

    def __call__(self, prompts, sampling, environment=None, abort_after=0, **engine):
        """What plain vLLM answers; `sampling` is one dictionary a prompt, or one for all."""
        if isinstance(sampling, dict):
            sampling = [sampling] * len(prompts)
        case = {
            "prompts": prompts,
            "sampling": sampling,
            "environment": environment or {},
            "abort_after": abort_after,
            "engine": {"model": str(self.folder / "target"), **engine},
        }
        print(json.dumps(case), file=self._process.stdin, flush=True)
        said = json.loads(self._process.stdout.readline())
        if "error" in said:
            raise RuntimeError(said["error"])
        return said

    def trees(self, *args, drafter="d2sd.engines.vllm.drafter.TreeDrafter", nodes=16, **more):
        """What vLLM answers with our trees."""
        ours = {name: str(self.folder / name) for name in ("first", "second")}
        return self(
            *args,
            worker_cls=WORKER,
            speculative_config={
                "method": "custom_class",
                "model": drafter,
                "num_speculative_tokens": nodes,
            },
            additional_config={"d2sd": {**ours, "policy": "merged", **more.pop("d2sd", {})}},
            **more,
        )

    def oracle(self, prompts, sampling, known, environment=None, **more):
        """The same by a drafter that knows how `known` goes on; also every accepted path."""
        knowledge, log = self.folder / "known.json", self.folder / "paths.jsonl"
        whole = [prompt + tokens for prompt, tokens in zip(prompts, known, strict=True)]
        knowledge.write_text(json.dumps(whole))
        log.unlink(missing_ok=True)
        told = {"D2SD_ORACLE": str(knowledge), "D2SD_ORACLE_LOG": str(log), **(environment or {})}
        more = {"drafter": "oracle.OracleTrees", **more}
        said = self.trees(prompts, sampling, environment=told, **more)
        lines = log.read_text().splitlines() if log.exists() else []
        return {**said, "paths": [json.loads(line) for line in lines]}

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def engine(folder):
    one = Engine(folder)
    yield one
    one.close()
