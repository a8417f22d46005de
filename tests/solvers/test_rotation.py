"""Rotated heads: the float function stays, and outliers are spread."""

import pytest
import torch
from torch import nn

import lowbit
from lowbit import Recipe, Rule, ZeroPoint
from lowbit.calibration import batches_of
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.formats import group
from lowbit.solvers import load_solver
from lowbit.solvers.rotation import random_rotation
from lowbit.solvers.sequential import solved_sequentially
from tests.models import make, output

IDS = torch.arange(0, 160).reshape(8, 20) * 7 % 199
ROTATED = {"name": "nearest", "rotate": True}
# The layers that change in the first block of each stack.
PAIRS = {
    "gpt2": {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"},
    "bert": {
        "encoder.layer.0.attention.self.value",
        "encoder.layer.0.attention.output.dense",
    },
    "llama-untied": {"model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"},
    "distilbert": {
        "distilbert.transformer.layer.0.attention.v_lin",
        "distilbert.transformer.layer.0.attention.out_lin",
    },
    "bart": {
        f"model.{stack}.layers.0.{attention}.{layer}"
        for stack, attention in (
            ("encoder", "self_attn"),
            ("decoder", "self_attn"),
            ("decoder", "encoder_attn"),
        )
        for layer in ("v_proj", "out_proj")
    },
    "t5": {
        f"{stack}.block.0.layer.{attention}.{layer}"
        for stack, attention in (
            ("encoder", "0.SelfAttention"),
            ("decoder", "0.SelfAttention"),
            ("decoder", "1.EncDecAttention"),
        )
        for layer in ("v", "o")
    },
}
SECOND = ("h.1.", "layers.1.", "encoder.layer.1.", "transformer.layer.1.")
QUICK = ("gpt2", "bert")


def solved_on(model, ids=IDS):
    plan = make_plan(model, load_recipe("int8"))
    return solved_sequentially(model, plan, load_solver(ROTATED), batches_of(ids, model))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PAIRS]
)
def test_rotation_leaves_the_float_function_unchanged(name):
    model = make(name)
    expected = output(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with solved_sequentially(
        model, make_plan(model, load_recipe("int8")), load_solver(ROTATED), batches_of(IDS, model)
    ) as solved:
        error = (output(model) - expected).norm() / expected.norm()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert (error <= 1e-5).item()
    weights = {n.removesuffix(".weight") for n in changed if n.endswith(".weight")}
    assert {n for n in weights if not any(block in n for block in SECOND)} == PAIRS[name]
    assert len(weights) == len(PAIRS[name]) * (1 if name in ("bart", "t5") else 2)
    assert not solved.notes()


@pytest.mark.parametrize("size", [1, 2, 7, 12, 64, 80])
def test_a_rotation_is_orthogonal(size):
    rotation = random_rotation(size)
    eye = torch.eye(size, dtype=torch.float64)
    assert ((rotation @ rotation.T - eye).abs() <= 1e-12).all()
    if size & (size - 1) == 0:
        assert torch.allclose(rotation.abs(), torch.full_like(rotation, size**-0.5), rtol=1e-12)


def test_an_outlier_costs_less_when_it_is_spread_over_its_head():
    outputs = Rule("*.attn.c_proj", ZeroPoint(4, group(64)))
    recipe = Recipe((outputs, *(Rule(kind) for kind in ("@linear", "@embedding", "@head"))))
    errors = {}
    for solver, data in (("nearest", {}), (ROTATED, {"calibration": IDS})):
        model = make("gpt2")
        for block in model.transformer.h:
            block.attn.c_proj.weight.data[7] *= 30
        expected = output(model)
        lowbit.quantize(model, recipe, solver=solver, **data)
        errors[solver is ROTATED] = (output(model) - expected).norm()
    assert (errors[True] < 0.5 * errors[False]).item()


def test_what_mixes_the_numbers_of_a_head_is_seen_and_said():
    model = make("gpt2")
    attention = model.transformer.h[0].attn
    attention.c_proj = nn.Sequential(nn.Tanh(), attention.c_proj)
    expected = output(model)
    before = {n: p.clone() for n, p in attention.named_parameters()}
    with solved_sequentially(
        model, make_plan(model, load_recipe("int8")), load_solver(ROTATED), batches_of(IDS, model)
    ) as solved:
        assert ((output(model) - expected).norm() <= 1e-5 * expected.norm()).item()
        assert all(torch.equal(p, before[n]) for n, p in attention.named_parameters())
    assert solved.notes() == ("1 layer with no heads that could be rotated: transformer.h.0",)


def test_single_tokens_do_not_mistake_queries_and_keys_for_a_pair():
    model = make("bert")
    expected = output(model)
    with solved_sequentially(
        model,
        make_plan(model, load_recipe("int8")),
        load_solver(ROTATED),
        batches_of(IDS[:, :1], model),
    ) as solved:
        assert ((output(model) - expected).norm() <= 1e-5 * expected.norm()).item()
    assert not any("no heads" in note for note in solved.notes())


def test_weights_that_rotation_would_round_again_stay_and_are_named():
    model = make("gpt2").bfloat16()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with solved_sequentially(
        model, make_plan(model, load_recipe("int8")), load_solver(ROTATED), batches_of(IDS, model)
    ) as solved:
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert solved.notes() == ("2 layers with no heads that could be rotated: transformer.h.0, …",)


def test_a_rotated_model_saves_and_loads_bit_for_bit(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int3", solver=ROTATED, calibration=IDS)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(model))


def test_rotation_goes_with_any_solver():
    model = make("gpt2")
    expected = output(model)
    lowbit.quantize(model, "int4", solver={"name": "awq", "rotate": True}, calibration=IDS)
    assert ((output(model) - expected).norm() <= 0.3 * expected.norm()).item()
