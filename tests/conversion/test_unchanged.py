"""Quantizing and dequantizing are all or nothing, whatever raises inside."""

import copy

import pytest
import torch
from torch import nn

import lowbit
from lowbit.conversion import apply as inplace
from lowbit.conversion import attach as attached
from lowbit.conversion import hf_quantizer as hub
from lowbit.conversion import save as saving
from lowbit.conversion import swap as convert
from lowbit.nn import QuantModule
from tests.models import make, output


class InjectedError(Exception):
    pass


def state_of(model):
    """Everything that a failure could leave behind, by identity."""
    modules = {name: (id(m), type(m)) for name, m in model.named_modules(remove_duplicate=False)}
    parameters = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    attributes = {
        name: {key: id(value) for key, value in vars(m).items()}
        for name, m in model.named_modules()
    }
    inner = {
        name: {
            key: [(k, id(v)) for k, v in value.items()]
            for key, value in vars(m).items()
            if isinstance(value, dict)
        }
        for name, m in model.named_modules()
    }
    config = model.config.to_dict() if hasattr(model, "config") else None
    ties = getattr(model, "all_tied_weights_keys", None)
    return modules, parameters, attributes, inner, config, copy.deepcopy(ties)


def any_module():
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    return nn.Sequential(nn.Embedding(200, 64), shared, nn.ReLU(), shared).eval()


STEPS = [
    (inplace, "untie"),
    (inplace, "put_quantized"),
    (inplace, "put_tied"),
    (inplace, "tied_entry"),
    (convert, "packed_like"),
    (convert, "hand_over_hooks"),
    (convert.QuantLinear, "hold"),
    (inplace, "attach"),
    (inplace, "LowbitConfig"),
    (inplace, "fuse"),
    (inplace, "Result"),
    (inplace, "footprint"),
]


def failing_at(call, function):
    """Raises at the call of that number, after the function has done its work."""
    calls = iter(range(1000))

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(calls) == call:
            raise InjectedError
        return result

    return wrapped


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize(("owner", "step"), STEPS)
@pytest.mark.parametrize("kind", ["gpt2", "any"])
def test_a_failure_at_any_step_of_quantizing_changes_nothing(kind, owner, step, call, monkeypatch):
    model = any_module() if kind == "any" else make(kind)
    model.register_forward_hook(lambda *_: None)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = state_of(model)
    monkeypatch.setattr(owner, step, failing_at(call, getattr(owner, step)))
    try:
        lowbit.quantize(model, "int8-all", progress=False)
    except InjectedError:
        assert state_of(model) == before
        assert all(torch.equal(weights[n], v) for n, v in model.state_dict().items())
        monkeypatch.undo()
        lowbit.quantize(model, "int8-all", progress=False)
    else:
        assert call == 1, f"{step} is never called"


@pytest.mark.parametrize(
    ("owner", "step"),
    [(hub, "unfuse"), (hub, "restore"), (hub, "retie"), (convert, "hand_over_hooks")],
)
def test_a_failure_in_dequantizing_changes_nothing(owner, step, monkeypatch):
    model = make("gpt2")
    lowbit.quantize(model, "int8-all", progress=False)
    expected, before = output(model), state_of(model)
    monkeypatch.setattr(owner, step, failing_at(0, getattr(owner, step)))
    with pytest.raises(InjectedError):
        model.dequantize()
    assert {n: type(m) for n, m in model.named_modules()} == {
        n: t for n, (_, t) in before[0].items()
    }
    monkeypatch.undo()
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize(
    ("owner", "step"),
    [(saving, "_put_packed"), (saving, "_fill"), (saving, "attach"), (saving, "fuse")],
)
def test_a_failure_in_loading_changes_nothing(owner, step, monkeypatch, tmp_path):
    model, fresh = any_module(), any_module()
    lowbit.quantize(model, "int8-all", progress=False)
    lowbit.save(model, tmp_path / "saved")
    before = state_of(fresh)
    monkeypatch.setattr(owner, step, failing_at(0, getattr(owner, step)))
    with pytest.raises(InjectedError):
        lowbit.load(fresh, tmp_path / "saved")
    assert state_of(fresh) == before


def test_a_failure_in_restoring_changes_nothing(monkeypatch):
    model = any_module()
    lowbit.quantize(model, "int8-all", progress=False)
    ids = torch.arange(200)
    expected = model(ids)
    monkeypatch.setattr(attached, "retie", failing_at(0, attached.retie))
    with pytest.raises(InjectedError):
        lowbit.restore_float(model)
    assert isinstance(model[1], QuantModule) and torch.equal(model(ids), expected)


def test_a_model_without_a_float_parameter_left_is_quantized():
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
    assert lowbit.quantize(model, "int8", progress=False).plan.share == 1
