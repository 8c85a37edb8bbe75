"""What the target says about its responses: online, stored, and never mixed up."""

import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from answers import random_responses
from conftest import tiny_model
from d2sd.train import store as store_module
from d2sd.train.features import FeatureSource, KeptFeatures, OnlineFeatures, Rows
from d2sd.train.store import StoredFeatures, build_store, store_bytes

TAPS = (0, 2)
DRAFT_IDS = tuple(range(1, 90, 2))
RESPONSES = random_responses(24)
EVERY = range(len(RESPONSES))


@pytest.fixture(scope="module")
def online(tiny_llama):
    return OnlineFeatures(tiny_llama, RESPONSES, TAPS, DRAFT_IDS)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of a few responses each."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 80 * store_bytes(1, len(TAPS), 32))


def build(model, folder, *more, responses=RESPONSES, taps=TAPS, draft_ids=DRAFT_IDS):
    return build_store(model, responses, folder, taps, draft_ids, *more)


def equal(ours: Rows, theirs: Rows) -> bool:
    return all(torch.equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(Rows))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_what_the_target_says_of_each_sequence_alone(tiny_llama, online):
    for sequence, rows in zip(EVERY, online.read(EVERY), strict=True):
        tokens = RESPONSES[sequence].tokens
        with torch.inference_mode():
            said = tiny_llama(torch.tensor([tokens]), output_hidden_states=True)
            last = tiny_llama.model.layers[-1]  # its output is not among the hidden states
            raw = {}
            hook = last.register_forward_hook(lambda _, __, out, raw=raw: raw.update(last=out))
            tiny_llama(torch.tensor([tokens]))
            hook.remove()
        features = torch.stack([said.hidden_states[1][0], raw["last"][0]], 1).float()
        assert torch.equal(rows.features, (features / online.scale).bfloat16())
        probs = said.logits[0][:, list(DRAFT_IDS)].softmax(-1)
        best = probs.topk(32, -1)
        assert torch.equal(rows.soft_ids.long(), best.indices)
        torch.testing.assert_close(rows.soft_probs.double(), best.values, rtol=0.01, atol=1e-6)
        assert rows.tokens.tolist() == list(tokens)


def test_the_scale_is_the_root_mean_square_without_first_tokens(online):
    raw = [rows.features.float()[1:] * online.scale for rows in online.read(EVERY)]
    measured = torch.cat(raw).square().mean(0).sqrt()
    torch.testing.assert_close(online.scale, measured, rtol=0.01, atol=1e-4)


def test_rows_can_be_learned_from(online):
    """A tensor made in inference mode could not be kept for a backward pass."""
    weight = torch.ones(1, requires_grad=True)
    (online.read([0])[0].features * weight).sum().backward()
    assert weight.grad is not None


def test_stored_rows_are_the_online_ones(tmp_path):
    model = tiny_model("Llama").float()
    stored = build(model, tmp_path)
    online = OnlineFeatures(model, RESPONSES, TAPS, DRAFT_IDS)
    assert stored.index == online.index
    assert torch.equal(stored.scale, online.scale)
    # all in one pass, as they were read for the only shard: float32 rounds by who is read with whom
    for ours, theirs in zip(stored.read(EVERY), online.read(EVERY), strict=True):
        assert equal(ours, theirs)


@pytest.mark.usefixtures("small_shards")
def test_rows_come_in_the_order_asked_for_from_any_shard(tiny_llama, online, tmp_path):
    stored = build(tiny_llama, tmp_path)
    assert len(list(tmp_path.glob("shard-*"))) > 4
    order = [23, 0, 7, 0, 11]
    for ours, theirs in zip(stored.read(order), online.read(order), strict=True):
        assert equal(ours, theirs)


@pytest.mark.usefixtures("small_shards")
def test_the_size_is_told_before(tiny_llama, tmp_path):
    stored = build(tiny_llama, tmp_path)
    told = store_bytes(stored.index.rows, len(TAPS), 32)
    sizes = [path.stat().st_size for path in tmp_path.glob("shard-*")]
    assert told <= sum(sizes) <= told + 2000 * len(sizes)


class KilledError(Exception):
    pass


@pytest.mark.usefixtures("small_shards")
def test_a_broken_off_build_goes_on_to_the_same_bytes(tiny_llama, tmp_path, monkeypatch):
    def killer(done, total):
        if done > total / 2:
            raise KilledError

    build(tiny_llama, tmp_path / "whole")
    with pytest.raises(KilledError):
        build(tiny_llama, tmp_path / "broken", killer)
    left = contents(tmp_path / "broken")
    assert 0 < len(left) < len(contents(tmp_path / "whole")) - 1
    assert not StoredFeatures.is_complete(tmp_path / "broken")
    heard = []
    build(tiny_llama, tmp_path / "broken", lambda done, total: heard.append(done))
    assert heard[0] > sum(map(len, RESPONSES)) / 3  # what was there is not made again
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_half_written_shard_is_made_again(tiny_llama, tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KilledError

    build(tiny_llama, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "save_file", half)
        with pytest.raises(KilledError):
            build(tiny_llama, tmp_path / "broken")
    build(tiny_llama, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from conftest import tiny_model
from test_train_features import build, store_bytes, store_module
store_module.SHARD_BYTES = 80 * store_bytes(1, 2, 32)
def killer(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
build(tiny_model("Llama"), sys.argv[1], killer)
"""


@pytest.mark.usefixtures("small_shards")
def test_a_killed_build_goes_on_to_the_same_bytes(tiny_llama, tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), here]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(contents(tmp_path / "killed")) > 2
    build(tiny_llama, tmp_path / "killed")
    build(tiny_llama, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"responses": RESPONSES[1:]}, "responses"),
        ({"responses": [replace(RESPONSES[0], temperature=0.5), *RESPONSES[1:]]}, "responses"),
        ({"taps": (0, 1)}, "taps"),
        ({"draft_ids": DRAFT_IDS[1:]}, "draft ids"),
        ({"model": {"initializer_range": 0.2}}, "target"),
        ({"model": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3}}}, "target"),
    ],
)
def test_features_of_something_else_are_refused(tiny_llama, tmp_path, finished, changed, words):
    build(tiny_llama, tmp_path)
    if not finished:
        (tmp_path / "store.json").unlink()
    changed = dict(changed)
    model = tiny_model("Llama", **changed.pop("model")) if "model" in changed else tiny_llama
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"made from other {words}; choose another folder"):
        build(model, tmp_path, **changed)
    assert contents(tmp_path) == before


def test_shards_cut_otherwise_are_not_mixed(tiny_llama, tmp_path, monkeypatch):
    build(tiny_llama, tmp_path)
    (tmp_path / "store.json").unlink()
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2**20)
    with pytest.raises(ValueError, match="made from other layout"):
        build(tiny_llama, tmp_path)


def test_a_finished_store_is_opened_without_a_pass(tmp_path, tiny_llama, monkeypatch):
    build(tiny_llama, tmp_path)
    monkeypatch.setattr(store_module, "OnlineFeatures", None)
    assert build(tiny_llama, tmp_path).index.rows == sum(map(len, RESPONSES))


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished feature store"):
        StoredFeatures(tmp_path)
    (tmp_path / "store.json").write_text('{"taps": [1], "starts": [0, 5]}')
    with pytest.raises(ValueError, match="older layout; remove"):
        StoredFeatures(tmp_path)


def test_a_full_disk_is_noticed_before_the_work(tiny_llama, tmp_path, monkeypatch):
    full = replace_free(store_module.shutil.disk_usage(tmp_path), 1000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"need 0\.0 GB.*choose another disk"):
        build(tiny_llama, tmp_path / "store")


def replace_free(usage, free):
    return type(usage)(usage.total, usage.used, free)


@pytest.mark.parametrize("tap", [-1, 3])
def test_a_tap_that_is_no_layer_is_refused(tiny_llama, tap):
    with pytest.raises(ValueError, match=f"layer {tap} does not exist: .* 0 to 2"):
        OnlineFeatures(tiny_llama, RESPONSES, (0, tap), DRAFT_IDS)


def test_responses_of_another_target_are_refused(tiny_llama):
    foreign = [*RESPONSES, replace(RESPONSES[0], response_ids=(3, 97))]
    with pytest.raises(ValueError, match="token 97, but the target has 97 tokens"):
        OnlineFeatures(tiny_llama, foreign, TAPS, DRAFT_IDS)


class Counting(FeatureSource):
    def __init__(self, source):
        self.index, self.scale, self.source, self.read_ids = source.index, source.scale, source, []

    def read(self, sequences):
        self.read_ids += sequences
        return self.source.read(sequences)


def test_kept_rows_are_read_once_and_the_same(online):
    counting = Counting(online)
    kept = KeptFeatures(counting)
    for order in ([3, 1], [1, 2, 3]):
        for ours, theirs in zip(kept.read(order), online.read(order), strict=True):
            assert equal(ours, theirs)
    assert counting.read_ids == [3, 1, 2]
