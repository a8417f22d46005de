import math

import pytest
import torch

import lowbit
from lowbit import InputError, UsageError
from lowbit.evaluation.generation import generate_sample, tokens_per_second
from tests.folders import byte_tokenizer
from tests.models import make


@pytest.fixture(scope="module")
def model():
    return make("gpt2")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_a_seed_decides_the_text_and_leaves_torch_as_it_was(model, tokenizer):
    state = torch.get_rng_state()
    first = generate_sample(model, tokenizer, "abc", 12, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert generate_sample(model, tokenizer, "abc", 12, seed=1) == first
    assert generate_sample(model, tokenizer, "abc", 12, seed=2) != first
    assert first.startswith("abc") and len(first) > 3


def test_with_one_candidate_sampling_is_greedy(model, tokenizer):
    ids = torch.tensor([tokenizer("abc").input_ids])
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    wanted = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert generate_sample(model, tokenizer, "abc", 4, seed=0, top_k=1) == wanted


@pytest.mark.parametrize("recipe", [None, "int4-all"])
def test_tokens_per_second_is_a_rate_and_restores_the_mode(recipe):
    model = make("gpt2")
    if recipe:
        lowbit.quantize(model, recipe, progress=False)
    model.train()
    rate = tokens_per_second(model, torch.arange(5), new_tokens=3, repeats=1)
    assert 0 < rate < math.inf
    assert all(m.training for m in model.modules())


def test_exactly_the_tokens_asked_for_are_made_even_past_an_end(monkeypatch):
    model = make("gpt2")
    # Every token is the end of the text.
    model.transformer.wte.weight.data.zero_()
    lengths = []
    generate = model.generate

    def spy(ids, **options):
        tokens = generate(ids, **options)
        lengths.append(tokens.shape[1] - ids.shape[1])
        return tokens

    monkeypatch.setattr(model, "generate", spy)
    tokens_per_second(model, torch.arange(5), new_tokens=7, repeats=2)
    assert lengths == [7, 7, 7]


def test_what_cannot_be_generated_is_one_sentence(model, tokenizer):
    with pytest.raises(InputError, match="3 tokens of prompt and 62 new ones .* 64 positions"):
        generate_sample(model, tokenizer, "abc", 62, seed=0)
    with pytest.raises(InputError, match="the prompt has no tokens"):
        generate_sample(model, tokenizer, "", 5, seed=0)
    with pytest.raises(UsageError, match="0 new tokens"):
        tokens_per_second(model, torch.arange(3), 0)
    with pytest.raises(UsageError, match="BertModel does not generate text"):
        tokens_per_second(make("bert"), torch.arange(3), 5)
