"""The small target: its tokenizer, its packing, and a training that learns and repeats itself."""

import pytest
import torch

from d2sd.train.small_target import (
    IGNORED,
    MASK,
    Exchange,
    RowSampler,
    SmallTarget,
    SmallTargetTraining,
    build_model,
    encode,
    pack,
    train_tokenizer,
)

EXCHANGES = [
    Exchange(f"What is {a} plus {b}?", f"The sum of {a} and {b} is {a + b}.")
    for a in range(12)
    for b in range(12)
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
    steps=40,
    warmup=4,
)


def same(function):
    return function


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(EXCHANGES, SHAPE.vocab_size)


@pytest.fixture(scope="module")
def documents(tokenizer):
    return encode(tokenizer, EXCHANGES, SHAPE.row)


def training(tokenizer, documents):
    rows = RowSampler(pack(documents, SHAPE.row), SHAPE.rows_per_step, SHAPE.seed)
    return SmallTargetTraining(SHAPE, build_model(SHAPE, tokenizer), rows, compiler=same)


def test_the_tokenizer_gives_text_back_and_knows_its_marks(tokenizer):
    text = "Naïve 12 plus 30 is\n  42 — ½!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 260 < len(tokenizer) <= SHAPE.vocab_size  # a small text has few pairs to merge
    assert tokenizer.mask_token == MASK
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_numbers_are_read_digit_by_digit(tokenizer):
    assert len(tokenizer("1234567")["input_ids"]) == 7


def test_documents_end_with_the_mark_that_ends_answers(tokenizer, documents):
    for document in documents[:5]:
        assert tokenizer.eos_token_id in document[-2:]  # the template adds a line break


def test_packing_keeps_every_token_once(documents):
    packed = pack(documents, SHAPE.row)
    held = sorted(packed.ids[packed.documents >= 0].tolist())
    assert held == sorted(token for document in documents for token in document)
    assert (packed.documents >= 0).float().mean() > 0.8


def test_a_label_is_the_next_token_of_the_same_document():
    packed = pack([[5, 6, 7], [8, 9]], 6)
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9, 0]]
    assert packed.labels().tolist() == [[6, 7, IGNORED, 9, IGNORED, IGNORED]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_packed_documents_do_not_see_each_other(tokenizer, documents):
    model = build_model(SHAPE, tokenizer).eval()
    short = sorted(documents, key=len)[:3]
    packed = pack(short, SHAPE.row)
    assert len(packed.ids) == 1
    hidden = torch.zeros(packed.visible().shape).masked_fill(~packed.visible(), -1e9)
    with torch.inference_mode():
        together = model(packed.ids, attention_mask=hidden, position_ids=packed.positions).logits[0]
        start = 0
        for document in sorted(short, key=len, reverse=True):
            alone = model(torch.tensor([document])).logits[0]
            torch.testing.assert_close(together[start : start + len(document)], alone)
            start += len(document)


def test_it_learns_and_two_runs_agree(tokenizer, documents):
    losses = []
    for _ in range(2):
        run = training(tokenizer, documents)
        heard = []
        run.run(lambda step, loss, heard=heard: heard.append(loss), SHAPE.steps)
        losses.append(heard)
        assert run.step == SHAPE.steps
    assert losses[0] == losses[1]
    assert sum(losses[0][-4:]) < 0.6 * sum(losses[0][:4])
    held = pack(documents[:8], SHAPE.row)
    assert run.held_out_loss(held) == pytest.approx(losses[0][-1], rel=0.3)


def test_a_killed_training_goes_on_bit_for_bit(tokenizer, documents, tmp_path):
    whole = training(tokenizer, documents)
    expected = []
    whole.run(lambda step, loss: expected.append(loss), 8)
    heard = []
    first = training(tokenizer, documents)
    first.run(lambda step, loss: heard.append(loss), 5)
    first.save(tmp_path)
    second = training(tokenizer, documents)
    assert second.resume(tmp_path)
    assert second.step == 5
    second.run(lambda step, loss: heard.append(loss), 8)
    assert heard == expected


def test_there_is_nothing_to_resume_at_first(tokenizer, documents, tmp_path):
    assert not training(tokenizer, documents).resume(tmp_path)
