"""Batched answers: equal to transformers' one by one, and drawn from the target's law."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from conftest import tiny_model
from d2sd.answers.batched import BatchedAnswerer, RowCache, pick
from d2sd.answers.questions import Question
from folders import byte_tokenizer


def quiet(*_):
    return None


def questions(count, temperature=0.0, vocab=90):
    rng = torch.Generator().manual_seed(5)
    lengths = [1, 9, 4, 17, 2, 30, 5, 11][:count]
    prompts = [torch.randint(3, vocab, (n,), generator=rng).tolist() for n in lengths]
    return [Question((), tuple(p), temperature, seed) for seed, p in enumerate(prompts)]


def answerer(model, stops=frozenset(), new=12, **options):
    return BatchedAnswerer(model, byte_tokenizer(), frozenset(stops), new, **options)


def alone(model, prompt, stops, new):
    """transformers' own greedy answer to one prompt."""
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=0,
        )
    return tuple(whole[0, len(prompt) :].tolist())


@pytest.mark.parametrize("check_every", [1, 5])
def test_greedy_batches_are_transformers_answers_one_by_one(tiny, check_every, monkeypatch):
    asked = questions(8)
    free = [alone(tiny, q.prompt_ids, (), 24) for q in asked]
    # ends that some answers meet early, some late, some never
    stops = {free[0][2], free[1][5], free[3][20]}
    ours = answerer(tiny, stops, 24)
    monkeypatch.setattr(ours, "_check_every", check_every)
    answers = ours.answer(asked, quiet)
    assert [a.response_ids for a in answers] == [
        alone(tiny, q.prompt_ids, stops, 24) for q in asked
    ]
    assert {a.finish for a in answers} == {"stop", "length"}
    assert all((a.response_ids[-1] in stops) == (a.finish == "stop") for a in answers)


def test_rows_that_are_done_leave_the_batch(tiny_llama, monkeypatch):
    seen = []
    ours = answerer(tiny_llama, new=24)
    inner = ours._pass
    monkeypatch.setattr(
        ours, "_pass", lambda c, ids, rows: seen.append(len(ids)) or inner(c, ids, rows)
    )
    rooms = iter([2, 2, 2, 2, 5, 5, 24, 24] * 2)
    monkeypatch.setattr(
        ours, "_room", lambda question, kept={}: kept.setdefault(question.seed, next(rooms))
    )
    answers = ours.answer(questions(8), quiet)
    assert [len(a.response_ids) for a in answers] == [2, 2, 2, 2, 5, 5, 24, 24]
    assert Counter(seen) == {8: 2, 4: 3, 2: 19}


@pytest.mark.parametrize("chunk", [16384, 40, 1])
def test_prompts_read_in_pieces_give_the_same_logits(tiny_llama, chunk, monkeypatch):
    asked = questions(6)
    monkeypatch.setattr("d2sd.answers.batched.PREFILL_TOKENS", chunk)
    _, logits, cache = answerer(tiny_llama)._read(asked, [True] * 6)
    with torch.inference_mode():
        wanted = [tiny_llama(torch.tensor([q.prompt_ids])).logits[0, -1] for q in asked]
    torch.testing.assert_close(logits, torch.stack(wanted), rtol=1e-9, atol=1e-9)
    assert cache.length == 30


def test_an_answer_does_not_depend_on_its_neighbours(tiny_llama):
    asked = questions(8, temperature=1.0)
    asked[3:5] = [Question((), q.prompt_ids, 0.0, q.seed) for q in asked[3:5]]
    ours = answerer(tiny_llama, {7}, 20, top_p=0.9)
    together = ours.answer(asked, quiet)
    apart = [ours.answer([question], quiet)[0] for question in reversed(asked)]
    assert together == apart[::-1]


def test_sampled_tokens_follow_the_targets_law(tiny_llama):
    """χ² over the first token of 4,000 draws; 97 tokens, the rare ones in one bin."""
    prompt, temperature, draws = (5, 17, 3), 2.5, 4000
    asked = [Question((), prompt, temperature, seed) for seed in range(draws)]
    answers = answerer(tiny_llama, new=1).answer(asked, quiet)
    counts = Counter(a.response_ids[0] for a in answers)
    with torch.inference_mode():
        law = (tiny_llama(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)

    def distance(law):
        often = [token for token in range(len(law)) if draws * law[token] >= 5]
        pairs = [(counts[token], draws * float(law[token])) for token in often]
        rare = draws - sum(n for n, _ in pairs), draws - sum(e for _, e in pairs)
        pairs += [rare] if rare[1] >= 1 else []
        return sum((n - e) ** 2 / e for n, e in pairs), len(pairs) - 1

    value, freedom = distance(law)
    assert freedom >= 10
    assert value < freedom + 4 * (2 * freedom) ** 0.5
    wrong, freedom = distance((law.log() * 1.2).softmax(-1))  # a mutant: another temperature
    assert wrong > freedom + 4 * (2 * freedom) ** 0.5


def test_second_tokens_do_not_repeat_the_first_ones_chance(tiny_llama):
    """Were one uniform number used twice, both draws would fall in the same place of the law."""
    asked = [Question((), (5,), 100.0, seed) for seed in range(400)]  # almost uniform
    pairs = [a.response_ids for a in answerer(tiny_llama, new=2).answer(asked, quiet)]
    values = torch.tensor(pairs, dtype=torch.float64)
    assert abs(float(torch.corrcoef(values.T)[0, 1])) < 0.2


def test_pick_takes_the_token_where_the_mass_passes_the_chance():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]]).expand(6, 6)
    chances = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1.0])
    assert pick(probs, chances).tolist() == [1, 1, 3, 3, 4, 4]


def test_a_prompt_near_the_end_of_the_context_is_answered_as_far_as_it_goes():
    model = tiny_model("Llama", max_position_embeddings=20)
    asked = [Question((), tuple(range(3, 3 + n)), 0.0, n) for n in (4, 15, 19)]
    answers = answerer(model, new=10).answer(asked, quiet)
    assert [len(a.response_ids) for a in answers] == [10, 5, 1]
    assert answers[1].response_ids == alone(model, asked[1].prompt_ids, (), 5)


def test_the_rows_cache_keeps_what_it_is_told_to():
    cache = RowCache(2, capacity=6)
    states = torch.arange(3 * 2 * 4 * 5.0).view(3, 2, 4, 5)
    for layer in range(2):
        keys, values = cache.update(states + layer, -states, layer)
        assert torch.equal(keys, states + layer)
        assert torch.equal(values, -states)
    cache.length = 4
    cache.keep_rows(torch.tensor([2, 0]))
    more = torch.ones(2, 2, 1, 5)
    keys, values = cache.update(more, more, 1)
    assert torch.equal(keys, torch.cat([states[[2, 0]] + 1, more], 2))
