"""The int8 target: every row by itself, near the float layer, decoded alike, and told apart."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from d2sd.cli import run
from d2sd.decode import decode
from d2sd.generate import Request, generate
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session
from d2sd.target.compiled import CompiledPass, compile_pass
from d2sd.target.hf import HFTarget
from d2sd.target.quantized import WIDEST, Int8Linear, check_quantization, quantize, rounded
from d2sd.tree import Branch, TokenTree
from d2sd.tuning.packages import fingerprint
from d2sd.tuning.store import cost_file
from fakes import ScriptedDrafter
from folders import save_drafter, save_target, tiny_llama

POLICIES = ["none", "block", "dual", "merged:budget=9"]


def layer(bias: bool = True, inputs: int = 37, outputs: int = 21) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs, bias)


def some_rows(count: int, inputs: int = 37) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    # magnitudes far apart: a scale over the pass would show at once
    return torch.randn(count, inputs, generator=rng) * torch.logspace(-3, 3, count)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_the_same_bits_whatever_its_companions(dtype) -> None:
    linear, x = Int8Linear(layer().to(dtype)), some_rows(40).to(dtype)
    together = linear(x[None])[0]
    assert together.dtype == dtype
    for start, end in ((0, 1), (7, 8), (39, 40), (3, 20), (20, 37)):
        assert torch.equal(linear(x[start:end]), together[start:end])
    assert torch.equal(linear(x.flip(0)).flip(0), together)


@pytest.mark.parametrize("bias", [True, False])
def test_the_error_is_within_the_bound_of_rounding(bias) -> None:
    plain, x = layer(bias), some_rows(30)
    error = (Int8Linear(plain)(x).double() - plain.double()(x.double())).abs()
    # x + dx times w + dw, with |dx| and |dw| at most half a scale
    w = plain.weight.detach()
    dx, dw = (rows.abs().amax(-1, keepdim=True) / 254 for rows in (x.double(), w))
    inputs = x.shape[-1]
    bound = dx @ w.abs().sum(-1)[None] + x.double().abs().sum(-1, keepdim=True) @ dw.T
    bound = bound + inputs * dx @ dw.T
    assert (error <= bound * (1 + 1e-5) + 1e-6).all()
    assert error.max() > 0  # something was rounded


def test_rows_of_zeros_and_of_the_smallest_numbers_are_no_trouble() -> None:
    x = torch.zeros(3, 37)
    x[1], x[2, 4] = 1e-45, 3.0
    linear = Int8Linear(layer())
    out = linear(x)
    assert torch.equal(out[0], linear.bias)
    assert out.isfinite().all()
    assert not torch.equal(out[2], linear.bias)


def test_what_is_not_a_number_does_not_pass_for_one() -> None:
    x = some_rows(3)
    x[1, 5] = torch.nan
    assert Int8Linear(layer())(x).isnan().any(-1).tolist() == [False, True, False]


def test_rounding_uses_the_whole_range_and_no_more() -> None:
    numbers, scale = rounded(torch.tensor([[-2.0, 1.0, 0.5], [0.0, 0.1, 0.001]]))
    assert numbers.tolist() == [[-127, 64, 32], [0, 127, 1]]
    torch.testing.assert_close(scale, torch.tensor([[2 / 127], [0.1 / 127]]))


def test_layers_that_would_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match=str(WIDEST + 1)):
        Int8Linear(nn.Linear(WIDEST + 1, 1, device="meta"))


def test_only_the_decoder_layers_change() -> None:
    plain, model = tiny_llama(attention_bias=True), tiny_llama(attention_bias=True)
    quantize(model)
    kinds = [type(module) for module in model.model.layers.modules()]
    assert kinds.count(Int8Linear) == 4 * 7
    assert nn.Linear not in kinds
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight)
    assert fingerprint(plain) != fingerprint(model)
    with pytest.raises(ValueError, match=r"Llama.*no plain linear"):
        quantize(model)


def test_a_float64_models_layers_answer_in_float64() -> None:
    linear = Int8Linear(layer().double())
    assert linear(some_rows(2).double()).dtype == torch.float64


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    save_target(folder / "target")
    save_drafter(folder / "first")
    save_drafter(folder / "second", seed=1)
    return folder


def session_of(home, quantized: str = "int8", tell=lambda words: None):
    paths = [str(home / name) for name in ("target", "first", "second")]
    choice = ModelChoice(*paths, dtype="float32", device="cpu", compiled=False, quantize=quantized)
    return open_session(choice, POLICIES, tell)


@pytest.mark.parametrize("prompt", [[5], [5, 17, 3, 5, 17]], ids=["one token", "five tokens"])
def test_every_policy_says_what_plain_passes_of_the_int8_model_say(home, prompt) -> None:
    session = session_of(home)
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        plain = session.model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    expected = plain[0, len(prompt) :].tolist()
    for policy in POLICIES:
        request = Request(tuple(prompt), max_new_tokens=40)
        drafter = session.drafter(policy)
        answer = generate(session.target, drafter, request, session.tokenizer)
        assert list(answer.token_ids) == expected

    def right_and_wrong(context):
        rest = expected[len(context.tokens) - len(prompt) :][:4]
        return [[*rest[:1], 0, 1], [7, 7], [*rest, 0]]

    steps = list(
        islice(decode(session.target, ScriptedDrafter(right_and_wrong), prompt, Sampling()), 8)
    )
    assert [token for step in steps for token in step.emitted] == expected[:40]
    assert [len(step.emitted) for step in steps] == [5] * 8


def test_on_the_real_model_no_last_bit_of_attention_is_rounded_away(smollm2) -> None:
    """Fails with attention in float32: the third token is another one."""
    choice = ModelChoice(
        str(smollm2), dtype="float32", device="cpu", compiled=False, quantize="int8"
    )
    session = open_session(choice, ["none"])
    message = {"role": "user", "content": "Write a short story about a fox and a river."}
    prompt = session.chat_prompt([message])
    request = Request(prompt, max_new_tokens=24)
    none = session.drafter("none")
    plain = generate(session.target, none, request, session.tokenizer).token_ids

    def right_and_wrong(context):
        rest = plain[len(context.tokens) - len(prompt) :][:6]
        return [rest, *((*rest[:at], 7) for at in range(len(rest)))]

    session.target.prefill(prompt[:1])
    drafter = ScriptedDrafter(right_and_wrong)
    assert generate(session.target, drafter, request, session.tokenizer).token_ids == plain


def test_a_node_does_not_feel_the_other_branches(home) -> None:
    target = session_of(home).target
    path, prompt = (9, 4, 30), [5, 17, 3]
    alone = TokenTree.from_branches(3, [Branch(path)])
    crowded = TokenTree.from_branches(3, [Branch(path), *(Branch((n, n + 1)) for n in range(40))])
    one = target.score(target.prefill(prompt), alone)
    other = target.score(target.prefill(prompt), crowded)
    nodes = [0, *(crowded.tokens.index(token) for token in path[:1])]
    torch.testing.assert_close(other.logits[nodes], one.logits[:2], atol=1e-4, rtol=1e-4)


def test_a_session_says_what_its_target_is(home) -> None:
    heard: list[str] = []
    plain, session = session_of(home, "none"), session_of(home, tell=heard.append)
    assert ["int8" in words for words in heard] == [True]
    assert session.provenance(0)["quantize"] == "int8"
    assert plain.provenance(0)["quantize"] == "none"
    assert cost_file(plain.cost_key) != cost_file(session.cost_key)
    assert plain.compilable.target_package != session.compilable.target_package


def test_generate_takes_the_option_and_refuses_others(home, capsys) -> None:
    command = ["generate", "hello", "--model", str(home / "target"), "--policy", "none"]
    command += ["--max-new-tokens", "4", "--device", "cpu", "--dtype", "float32", "--json"]
    assert run([*command, "--quantize", "int8"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["text"] is not None
    assert said.err.count("int8") == 1
    assert run([*command, "--quantize", "int4"]) == 2
    assert "int4" in capsys.readouterr().err


def test_a_gpu_is_refused_in_one_sentence() -> None:
    check_quantization("none", torch.device("cuda"))
    check_quantization("int8", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"int8.*CPU only.*cuda"):
        check_quantization("int8", torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_it_multiplies_packed_integers(tmp_path) -> None:
    """Inductor finds its pattern in all seven linear maps; the numbers stay the eager ones."""
    model = tiny_llama(num_hidden_layers=1)
    quantize(model)
    found = counters["inductor"]["qlinear_weight_prepack_matcher_count"]
    compile_pass(model, (), tmp_path / "target.pt2")
    assert counters["inductor"]["qlinear_weight_prepack_matcher_count"] - found == 7
    eager, fast = HFTarget(model), HFTarget(model)
    fast.run = CompiledPass(tmp_path / "target.pt2", model)
    prompt = [5, 17, 3, 9]
    tree = TokenTree.from_branches(9, [Branch((4, 8)), Branch((7, 7, 1))])
    one, other = (target.score(target.prefill(prompt), tree) for target in (eager, fast))
    torch.testing.assert_close(other.logits, one.logits, atol=1e-4, rtol=1e-4)
