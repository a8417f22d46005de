"""lowbit.generate against model.generate, token for token."""

import copy

import pytest
import torch

import lowbit
from lowbit.errors import UsageError
from tests.models import VOCABULARY, make

DECODERS = ("gpt2", "llama-tied", "llama-untied")
TRANSLATORS = ("marian", "bart")
RECIPES = (None, "int8-dynamic", "int4-all", "bcq2-dynamic")


def quantized(name, recipe):
    model = make(name)
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    return model


def batch(model):
    """Three rows of different lengths, padded as the model wants it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    padding = (slice(5, None), slice(7, None)) if model.config.is_encoder_decoder else (
        slice(0, 4),
        slice(0, 2),
    )
    for row, gap in enumerate(padding, 1):
        ids[row, gap] = 0
        mask[row, gap] = 0
    return {"input_ids": ids, "attention_mask": mask}


def same(model, inputs, **settings):
    expected = model.generate(**inputs, **settings)
    for _ in range(2):  # recorded, and from what was kept
        assert torch.equal(lowbit.generate(model, **inputs, **settings), expected)
    return expected


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", DECODERS + TRANSLATORS)
def test_greedy_tokens_of_a_padded_batch_are_those_of_transformers(name, recipe):
    model = quantized(name, recipe)
    same(model, batch(model), do_sample=False, max_new_tokens=12, pad_token_id=0)


@pytest.mark.parametrize("recipe", (None, "int8-dynamic"))
@pytest.mark.parametrize("name", ("gpt2", "llama-tied", *TRANSLATORS))
def test_beams_are_those_of_transformers(name, recipe):
    model = quantized(name, recipe)
    settings = {"num_beams": 3, "max_new_tokens": 10, "pad_token_id": 0}
    same(model, batch(model), length_penalty=0.6, early_stopping=True, **settings)
    same(model, batch(model), num_return_sequences=2, **settings)
