"""`torch.compile(model, backend="lowbit")`: the model's own results, by its own programs."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertModel

import lowbit
from lowbit.fallbacks import SlowPathWarning, noted
from lowbit.kernels import native
from lowbit.runtime import backend
from lowbit.runtime.programs import Compiled, Programs

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=native.reason()),
    # torch.compile warns of its own deprecated parts.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=160,
)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(kind: type = BertModel) -> nn.Module:
    torch.manual_seed(0)
    model = kind(CONFIG).eval()
    lowbit.quantize(model, "int8-dynamic", progress=False)
    return model


def batch(length: int, hidden: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(60, (2, length))
    mask = torch.ones_like(ids)
    mask[0, length - hidden :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_calls_of_any_size_run_one_program():
    model = made()
    compiled = torch.compile(model, backend="lowbit")
    with torch.no_grad():
        for length, hidden in ((7, 2), (9, 0), (12, 5), (1, 0)):
            inputs = batch(length, hidden)
            found, wanted = compiled(**inputs), model(**inputs)
            assert type(found) is type(wanted) and list(found) == list(wanted)
            there = inputs["attention_mask"].bool()
            assert_close(found.last_hidden_state[there], wanted.last_hidden_state[there])
            assert_close(found.pooler_output, wanted.pooler_output)
            assert not found.last_hidden_state[~there].any()  # only programs leave padding out
    (program,) = Programs.of(model).made.values()
    assert isinstance(program, Compiled)
    assert not noted(model)
    assert lowbit.explain(model).programs[""][0].operations


def test_each_output_is_the_one_of_its_name():
    model = made(BertForQuestionAnswering)
    inputs = batch(9)
    with torch.no_grad():
        wanted = model(**inputs, output_hidden_states=True)
        found = torch.compile(model, backend="lowbit")(**inputs, output_hidden_states=True)
    assert_close(found.start_logits, wanted.start_logits)
    assert_close(found.end_logits, wanted.end_logits)
    for mine, own in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert_close(mine, own)


def test_positional_arguments_are_the_same_call():
    model, inputs = made(), batch(9)
    with torch.no_grad():
        wanted = model(**inputs)[0]
        assert_close(torch.compile(model, backend="lowbit")(*inputs.values())[0], wanted)
    assert not noted(model)


def test_gradients_go_through_the_graph():
    model, inputs = made(), batch(9)
    with pytest.warns(SlowPathWarning, match=r"use torch\.no_grad"):
        found = torch.compile(model, backend="lowbit")(**inputs)[0]
    found.sum().backward()
    mine = model.embeddings.LayerNorm.weight.grad.clone()
    model.zero_grad()
    wanted = model(**inputs)[0]
    wanted.sum().backward()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(mine, model.embeddings.LayerNorm.weight.grad, rtol=1e-3, atol=1e-3)


def test_a_program_that_differs_from_the_graph_is_not_used(monkeypatch):
    model, inputs = made(), batch(9)
    with torch.no_grad():
        wanted = model(**inputs)[0]
        own = Compiled.__call__
        monkeypatch.setattr(
            Compiled, "__call__", lambda *given: {"states": own(*given)[0] * 1.2, "none": None}
        )
        with pytest.warns(SlowPathWarning, match="something else"):
            found = torch.compile(model, backend="lowbit")(**inputs)[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_other_functions_run_as_they_are():
    linear = nn.Linear(3, 4)
    with pytest.warns(SlowPathWarning, match="transformers models"):
        found = torch.compile(linear, backend="lowbit")(torch.ones(2, 3))
    assert torch.allclose(found, linear(torch.ones(2, 3)))


def test_differences_are_relative_and_never_nan():
    ones = torch.ones(4)
    assert backend._difference(ones, ones * 1.5) == 0.5
    assert backend._difference(ones * 0, ones * 0) == 0
    assert backend._difference(ones, ones * torch.nan) == torch.inf
    assert backend._difference(ones, torch.ones(5)) == torch.inf
    assert backend._difference(3, ones) == torch.inf


def test_compiled_models_are_not_kept():
    model = made()
    with torch.no_grad():
        torch.compile(model, backend="lowbit")(**batch(9))
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None
