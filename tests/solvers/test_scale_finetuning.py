"""Tuned scales: nearer to the float model, codes as they were, and the truth about it."""

import math

import numpy as np
import pytest
import torch

import lowbit
from lowbit import UsageError
from lowbit.calibration import batches_of
from lowbit.conversion.dequantize import rounded
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.nn import QuantModule
from lowbit.solvers import Solver, load_solver
from lowbit.solvers import scale_finetuning as tuning
from lowbit.solvers.sequential import solved_sequentially
from tests.models import make

IDS = torch.arange(0, 320).reshape(16, 20) * 7 % 199
SLOW = pytest.mark.slow


def sharp(name):
    """A model that is sure of something: random ones predict all tokens alike."""
    model = make(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def stored(model, recipe, solver):
    """By module, what is stored, and the notes."""
    with solved_sequentially(
        model,
        make_plan(model, load_recipe(recipe)),
        load_solver(solver),
        batches_of(IDS, model),
        progress=False,
    ) as solved:
        return solved.stored, solved


def numpy_distance(model, reference):
    """Oracle: mean KL divergence over tokens, or relative squared error, in float64."""
    part = whole = 0.0
    for batch in batches_of(IDS, reference):
        with torch.no_grad():
            found, wanted = (m.eval()(**batch) for m in (model, reference))
        logits = getattr(wanted, "logits", None)
        p, q = (
            (out[0] if logits is None else out.logits).double().numpy() for out in (wanted, found)
        )
        if logits is None:
            part, whole = part + ((p - q) ** 2).sum(), whole + (p**2).sum()
            continue
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        part, whole = part + (np.exp(p) * (p - q)).sum(), whole + p[..., 0].size
    return part / whole


@pytest.mark.parametrize(
    ("name", "recipe", "solver"),
    [
        ("gpt2", "int2-all", "nearest"),
        ("bert", "int3", "hqq"),
        ("bart", "bcq2-all", "nearest"),
        pytest.param("llama-tied", "int3-all", "gptq", marks=SLOW),
        pytest.param("t5", "bcq1", "binary", marks=pytest.mark.nightly),
        pytest.param("distilbert", "int3", "awq", marks=SLOW),
    ],
)
def test_tuned_models_are_nearer_and_the_notes_say_how_near(name, recipe, solver):
    reference, distances = sharp(name), []
    owners = {d.name: d for d in make_plan(reference, load_recipe(recipe)).owners}
    for passes in (0, 3):
        model = sharp(name)
        found, solved = stored(model, recipe, {"name": solver, "tune": passes})
        with rounded(model, [(owners[n], q) for n, q in found.items()]):
            distances.append(numpy_distance(model, reference))
    assert distances[1] < distances[0]
    assert solved.tuned == pytest.approx(distances, rel=1e-3, abs=1e-7)
    assert f"{solved.tuned[1]:.3g} away" in solved.notes()[-1]


@pytest.mark.parametrize("recipe", ["int3-all", "bcq2-all"])
def test_only_scales_and_offsets_change(recipe):
    model = sharp("gpt2")
    before, after = (
        stored(model, recipe, {"name": "nearest", "tune": passes})[0] for passes in (0, 2)
    )
    changed = 0
    for module, q in before.items():
        assert q.layout == after[module].layout
        for name, old in q.tensors().items():
            new = after[module].tensors()[name]
            assert new.dtype == old.dtype and new.shape == old.shape
            if old.is_floating_point():
                changed += int((new != old).sum())
                assert torch.equal(new.sign(), old.sign())
                low, high = 1 + tuning.LIMITS[0], 1 + tuning.LIMITS[1]
                assert ((new >= low * old.abs() - 1e-6) | (old < 0)).all()
                assert (new.abs() <= high * old.abs() + 1e-6).all()
            else:
                assert torch.equal(new, old)
    assert changed > 100


def test_what_is_saved_is_what_was_tuned():
    model = sharp("gpt2")
    result = lowbit.quantize(model, "int2", solver=Solver(tune=2), calibration=IDS, progress=False)
    told = float(result.notes[-1].split(" are ")[1].split(" away")[0])
    assert numpy_distance(model, sharp("gpt2")) == pytest.approx(told, rel=6e-3)
    assert any(isinstance(module, QuantModule) for module in model.modules())


def test_a_pass_that_does_harm_is_not_kept(monkeypatch):
    monkeypatch.setattr(tuning, "RATE", 100.0)
    model = sharp("gpt2")
    before, _ = stored(model, "int8", "nearest")
    after, solved = stored(model, "int8", {"name": "nearest", "tune": 1})
    assert solved.tuned[0] == solved.tuned[1]
    for name, q in before.items():
        assert torch.equal(q.scale, after[name].scale)


def test_outputs_that_are_no_numbers_are_not_kept():
    model = sharp("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = math.nan
    before, _ = stored(model, "int4", "nearest")
    after, solved = stored(model, "int4", {"name": "nearest", "tune": 1})
    assert all(math.isnan(x) for x in solved.tuned)
    for name, q in before.items():
        assert torch.equal(q.scale, after[name].scale)


def test_the_float_model_is_as_it_was_if_tuning_fails(monkeypatch):
    model = sharp("gpt2")
    before = {name: p.clone() for name, p in model.named_parameters()}

    def failing(*args):
        raise MemoryError

    monkeypatch.setattr("lowbit.solvers.sequential.tune", failing)
    with pytest.raises(MemoryError):
        lowbit.quantize(model, "int4", solver={"name": "gptq", "tune": 1}, calibration=IDS)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    assert not any(isinstance(module, QuantModule) for module in model.modules())


def test_no_gradient_stays_behind():
    model = sharp("gpt2")
    lowbit.quantize(model, "int4", solver={"name": "nearest", "tune": 1}, calibration=IDS)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input():
    with pytest.raises(UsageError, match="tune must be at least 0, not -1"):
        Solver(tune=-1)
    for wrong in ({"tune": 0.9}, {"tune": "2"}, {"rotate": "false"}):
        with pytest.raises(UsageError, match="of a solver is .*, not of type"):
            load_solver({"name": "nearest"} | wrong)
    with pytest.raises(UsageError, match="learns from data: give calibration data"):
        lowbit.quantize(make("gpt2"), "int4", solver={"name": "nearest", "tune": 1})
