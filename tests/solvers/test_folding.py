"""AWQ and SmoothQuant: what is folded leaves the float function as it was."""

import pytest
import torch
from hypothesis import given, settings

import lowbit
from lowbit import Absmax, ZeroPoint
from lowbit.calibration import batches_of
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.formats import FORMATS, group
from lowbit.solvers import awq, load_solver, smoothquant
from lowbit.solvers.hessian import Inputs
from lowbit.solvers.sequential import solved_sequentially
from tests.models import make, output
from tests.solvers.correlated import problem, seeds
from tests.solvers.oracle import output_error

IDS = torch.arange(0, 160).reshape(8, 20) * 7 % 199
# By architecture: one layer after which inputs can be scaled, and one after which they cannot.
EXPECTED = {
    "gpt2": ("h.0.mlp.c_fc", "h.0.mlp.c_proj"),
    "llama-untied": ("layers.1.mlp.down_proj", None),
    "bart": (None, "encoder.layers.0.fc1"),
    "bert": ("layer.0.attention.output.dense", "layer.1.attention.self.query"),
}

SLOW = ("llama-untied", "bart")


def watched(inputs):
    found = Inputs.none_yet(inputs.shape[1], inputs.device)
    found.add(inputs)
    return found


@pytest.mark.parametrize("solver", ["awq", "smoothquant"])
@pytest.mark.parametrize(
    "name", ["gpt2", "bert", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_folding_leaves_the_float_function_unchanged(name, solver):
    model = make(name)
    expected = output(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    # At 4 bits every layer gains from scales; at 8 bits AWQ leaves some as they are.
    with solved_sequentially(
        model, make_plan(model, load_recipe("int4")), load_solver(solver), batches_of(IDS, model)
    ) as solved:
        error = (output(model) - expected).norm() / expected.norm()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert (error <= 1e-5).item()
    assert changed
    unfolded = next((m for k, m in solved.remarks.items() if "no producer" in k), [])
    folds, keeps = EXPECTED[name]
    assert keeps is None or any(m.endswith(keeps) for m in unfolded)
    assert folds is None or any(n.endswith(f"{folds}.weight") for n in changed)


@given(seeds)
@settings(max_examples=10)
def test_awq_is_never_worse_than_nearest_rounding(seed):
    weight, inputs = problem(seed)
    scheme, seen = ZeroPoint(3, group(20)), watched(inputs)
    f = awq.factors([weight], seen, [scheme])
    decode = FORMATS["affine"].decode
    hessian = seen.hessian.numpy()
    found = output_error(weight.numpy(), (decode(scheme.quantize(weight * f)) / f).numpy(), hessian)
    near = output_error(weight.numpy(), decode(scheme.quantize(weight)).numpy(), hessian)
    assert found <= near * (1 + 1e-6)


def test_awq_scales_what_is_large():
    weight, inputs = problem(4)
    inputs[:, 7] *= 100
    f = awq.factors([weight], watched(inputs), [ZeroPoint(3, group(20))])
    assert f.argmax() == 7


def test_smoothquant_balances_inputs_and_weights():
    weight, inputs = problem(4)
    inputs[:, 3] = 0
    seen = watched(inputs)
    f = smoothquant.factors([weight, weight[:3] * 2], seen, [Absmax(8)] * 2)
    largest = torch.maximum(weight.abs().amax(0), 2 * weight[:3].abs().amax(0))
    others = torch.arange(40) != 3
    assert torch.allclose((seen.largest / f)[others], (largest * f)[others], rtol=1e-5)
    assert f[3] == 1


def test_smoothquant_helps_where_some_inputs_are_far_larger():
    errors = {}
    for solver in ("nearest", "smoothquant"):
        model = make("llama-untied")
        for layer in model.model.layers:
            layer.input_layernorm.weight.data[5] *= 60
            layer.post_attention_layernorm.weight.data[9] *= 60
        expected = output(model)
        lowbit.quantize(model, "int8-static", solver=solver, calibration=IDS)
        errors[solver] = (output(model) - expected).norm()
    assert (errors["smoothquant"] < 0.7 * errors["nearest"]).item()


def test_a_folded_model_saves_and_loads_bit_for_bit(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int3", solver="awq", calibration=IDS)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(model))
