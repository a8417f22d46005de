import pytest
import torch

from lowbit import InputError, UsageError
from lowbit.evaluation.generation import generate_sample
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


def test_what_cannot_be_generated_is_one_sentence(model, tokenizer):
    with pytest.raises(InputError, match="3 tokens of prompt and 62 new ones .* 64 positions"):
        generate_sample(model, tokenizer, "abc", 62, seed=0)
    with pytest.raises(InputError, match="the prompt has no tokens"):
        generate_sample(model, tokenizer, "", 5, seed=0)
    with pytest.raises(UsageError, match="new tokens must be at least 1, not 0"):
        generate_sample(model, tokenizer, "abc", 0, seed=0)
    with pytest.raises(UsageError, match="BertModel does not generate text"):
        generate_sample(make("bert"), tokenizer, "abc", 5, seed=0)
