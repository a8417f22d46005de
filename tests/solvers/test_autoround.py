"""AutoRound: never worse than nearest rounding, and the very steps of the paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit import Absmax, InputError, UsageError, ZeroPoint, dequantize
from lowbit.calibration import batches_of
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.formats import CHANNEL, TENSOR, group
from lowbit.nn import QuantModule
from lowbit.solvers import SOLVERS, autoround
from lowbit.solvers.block import Block
from lowbit.solvers.block_runner import Playback, playing
from lowbit.solvers.blocks import find_stages
from tests.decoded import changes, decoded_model, relative
from tests.models import make, output
from tests.solvers.correlated import hessian_of, problem, seeds
from tests.solvers.oracle import output_error
from tests.solvers.signed_descent import signed_descent

IDS = torch.arange(0, 160).reshape(8, 20) * 7 % 199
SCHEMES = [
    ZeroPoint(4, group(16)),
    ZeroPoint(2, group(24)),
    Absmax(3),
    Absmax(3, range="minmax"),
    Absmax(8),
    ZeroPoint(3, TENSOR),
]


def damped(hessian):
    hessian = hessian.double().numpy()
    return hessian + 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))


@given(seeds, st.sampled_from(SCHEMES), st.sampled_from([1, 7, 30]))
@settings(max_examples=15)
def test_it_is_never_worse_than_nearest_rounding(seed, scheme, iterations):
    weight, inputs = problem(seed)
    hessian = hessian_of(inputs)
    near = scheme.quantize(weight)
    found = autoround.solve(weight, hessian, scheme, iterations)
    assert found.layout == near.layout
    before, after = (
        output_error(weight.numpy(), dequantize(q).numpy(), damped(hessian)) for q in (near, found)
    )
    assert after <= before * (1 + 1e-5)


@pytest.mark.parametrize("scheme", [ZeroPoint(3, group(20)), Absmax(3), ZeroPoint(2, TENSOR)])
def test_where_neighbours_are_alike_it_is_far_better(scheme):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 40, generator=generator)
    for j in range(1, 40):
        inputs[:, j] = 0.95 * inputs[:, j - 1] + 0.3 * inputs[:, j]
    weight, hessian = torch.randn(12, 40, generator=generator), hessian_of(inputs)
    near, found = scheme.quantize(weight), autoround.solve(weight, hessian, scheme)
    before, after = (
        output_error(weight.numpy(), dequantize(q).numpy(), hessian.numpy()) for q in (near, found)
    )
    assert after < 0.8 * before


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_step_is_that_of_an_oracle_with_written_gradients(seed, bits):
    weight, inputs = problem(seed, rows=6, columns=12)
    hessian = hessian_of(inputs)
    # Ten iterations are all looked at.
    found = autoround.solve(weight, hessian, ZeroPoint(bits, CHANNEL), iterations=10)
    expected = signed_descent(weight.numpy(), damped(hessian), bits, iterations=10)
    assert (np.abs(dequantize(found).numpy() - expected) <= 1e-6 * np.abs(expected).max()).all()


def test_codes_at_the_ends_have_gradients_with_any_torch():
    codes = torch.tensor([-1.0, 0.0, 7.0, 15.0, 16.0], requires_grad=True)
    kept = autoround._clamped(codes, 15)
    kept.sum().backward()
    assert kept.tolist() == [0, 0, 7, 15, 15] and codes.grad.tolist() == [0, 1, 1, 1, 0]


def test_rows_of_zeros_stay_zeros():
    weight, inputs = problem(1)
    weight[3] = 0
    found = autoround.solve(weight, hessian_of(inputs), ZeroPoint(3, group(16)), iterations=10)
    assert not dequantize(found)[3].any()


def test_a_large_weight_is_solved_in_parts_like_a_small_one(monkeypatch):
    weight, inputs = problem(5)
    whole = autoround.solve(weight, hessian_of(inputs), ZeroPoint(3), iterations=8)
    monkeypatch.setattr(autoround, "WEIGHTS_AT_ONCE", 4 * weight.shape[1])
    parts = autoround.solve(weight, hessian_of(inputs), ZeroPoint(3), iterations=8)
    errors = [
        output_error(weight.numpy(), dequantize(q).numpy(), damped(hessian_of(inputs)))
        for q in (whole, parts)
    ]
    # Each part keeps an iterate of its own.
    assert errors[1] <= errors[0] * (1 + 1e-5)


def first_block_error(model, float_model):
    """Of the output of the first block, on the data it was solved on."""
    with torch.no_grad():
        found, expected = (
            m(IDS, output_hidden_states=True).hidden_states[1] for m in (model, float_model)
        )
    return (found - expected).square().sum()


@pytest.mark.parametrize(
    ("name", "iterations", "share"),
    [
        ("gpt2", 15, 0.6),
        # One step goes to the ends of all ranges.
        ("gpt2", 1, 1 + 1e-5),
        pytest.param("llama-untied", 15, 0.6, marks=pytest.mark.slow),
    ],
)
def test_a_block_errs_less_than_rounded_to_the_nearest(name, iterations, share):
    near, found = make(name), make(name)
    lowbit.quantize(near, "int2")
    solver = {"name": "autoround", "iterations": iterations}
    lowbit.quantize(found, "int2", solver=solver, calibration=IDS)
    errors = [first_block_error(model, make(name)) for model in (near, found)]
    assert (errors[1] <= share * errors[0]).item()


@pytest.mark.parametrize(
    ("name", "recipe", "most"),
    [
        # The error from the float model with the solved weights: of float activations and of int8.
        ("bart", "int4", 1e-5),
        pytest.param("t5", "int4-all", 1e-5, marks=pytest.mark.slow),
        pytest.param("gpt2", "int3-all-dynamic", 0.06, marks=pytest.mark.slow),
        pytest.param("distilbert", "int4-static", 0.05, marks=pytest.mark.slow),
    ],
)
def test_every_architecture_is_solved_whole(name, recipe, most):
    model = make(name)
    solver = {"name": "autoround", "iterations": 2, "correct_bias": True}
    result = lowbit.quantize(model, recipe, solver=solver, calibration=IDS)
    packed = {n for n, m in model.named_modules() if isinstance(m, QuantModule)}
    assert {d.name for d in result.plan.quantized} == packed
    decoded = decoded_model(model, name)
    assert relative(output(model), output(decoded)) <= most
    for parameter, change in changes(decoded, name):
        # A corrected bias is still far from 0, whose change is 1.
        assert change <= (0.9 if parameter.endswith("bias") else 0.3), parameter


def test_blocks_are_compared_with_the_float_model_embedding_and_all(monkeypatch):
    """Oracle: the hidden states of a float copy."""
    expected = {}

    def spy(weights, schemes, block, progress, **options):
        expected[block.stage.name] = block.expected[0]
        return {name: schemes[name].quantize(w) for name, w in weights.items()}

    method = replace(SOLVERS["autoround"], solve_block=spy)
    monkeypatch.setitem(SOLVERS, "autoround", method)
    lowbit.quantize(make("gpt2"), "int2-all", solver="autoround", calibration=IDS)
    with torch.no_grad():
        states = make("gpt2")(IDS[:8], output_hidden_states=True).hidden_states
    found = expected["transformer.h.0"]
    found = found if isinstance(found, torch.Tensor) else found[0]
    assert ((found - states[1]).norm() <= 1e-5 * states[1].norm()).item()


def block_error(batch, name="bert"):
    """The error of the second block on one batch, all weights of it and of the first halved."""
    model = make(name)
    owners = make_plan(model, load_recipe("int4")).owners
    with playing(model):
        batches = batches_of([batch], model)
        first, second = (s for s in find_stages(model, owners, batches[0]) if s.stack is not None)
        playback, reference = Playback(model, batches), Playback(model, batches)
        for stage in (first, second):
            reference.advance(stage)
        for d in first.decisions:
            model.get_submodule(d.name).weight.data /= 2
        playback.advance(first)
        weights = {d.name: model.get_submodule(d.name).weight / 2 for d in second.decisions}
        return Block(playback, reference, second).error(weights, 0)


def test_the_error_of_a_block_is_that_of_its_tokens_without_padding():
    padded = torch.cat([IDS, torch.full((8, 6), 5)], 1)
    mask = (torch.arange(26) < 20).long().expand(8, -1)
    plain = block_error({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    found = block_error({"input_ids": padded, "attention_mask": mask})
    model, halved = make("bert"), make("bert")
    for parameter in halved.encoder.parameters():
        parameter.data /= 1 + (parameter.ndim == 2)
    with torch.no_grad():
        expected = (model(IDS)[0] - halved(IDS)[0]).square().sum()
    assert ((plain - expected).abs() <= 1e-5 * expected).item()
    assert ((found - expected).abs() <= 1e-5 * expected).item()


@pytest.mark.parametrize(
    ("recipe", "iterations", "sentence"),
    [
        ("int4", 0, "iterations must be at least 1, not 0"),
        ("bcq3", 1, "h.0.attn.c_attn.weight: this solver finds affine codes"),
    ],
)
def test_wrong_use_gets_one_sentence(recipe, iterations, sentence):
    solver = {"name": "autoround", "iterations": iterations}
    with pytest.raises(UsageError, match=sentence):
        lowbit.quantize(make("gpt2"), recipe, solver=solver, calibration=IDS)


def test_weights_that_are_not_finite_are_named():
    model = make("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[3, 4] = torch.nan
    with pytest.raises(InputError, match=r"h.1.mlp.c_fc.weight: 1 of"):
        lowbit.quantize(
            model, "int4", solver={"name": "autoround", "iterations": 1}, calibration=IDS
        )
