"""The walk: every architecture, what blocks see, and going on after a kill."""

import json

import pytest
import torch

import lowbit
from lowbit import InputError, UsageError
from lowbit.calibration import batches_of
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.nn import QuantModule
from lowbit.solvers import Solver
from lowbit.solvers import sequential as walk
from lowbit.solvers.blocks import find_stages
from tests.decoded import (
    changes,
    decoded_model,
    errors_without_a_bias,
    errors_without_a_layer,
    relative,
)
from tests.models import make, output

IDS = torch.arange(0, 160).reshape(8, 20) * 7 % 199
STAGES = {
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1"],
    "bart": [
        "model.shared",
        "model.encoder.layers.0",
        "model.decoder.layers.0",
    ],
}
PLAIN = {"name": "gptq", "rounds": 0}


def weights(model):
    """Every stored tensor and float parameter."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The error from the float model with the solved weights: of float activations and of int8.
FLOAT, STATIC, DYNAMIC = 1e-5, 0.06, 0.1


@pytest.mark.parametrize(
    ("name", "recipe", "most"),
    [
        ("bert-mlm", "int4", FLOAT),
        pytest.param("gpt2", "int3-all", FLOAT, marks=pytest.mark.slow),
        pytest.param("llama-untied", "int3-all-dynamic", DYNAMIC, marks=pytest.mark.slow),
        ("bart", "int4-static", STATIC),
        pytest.param("t5", "int4-all", FLOAT, marks=pytest.mark.slow),
        pytest.param("marian", "int4", FLOAT, marks=pytest.mark.slow),
        pytest.param("distilbert", "int4", FLOAT, marks=pytest.mark.slow),
        pytest.param("llama-tied", "int4-all", FLOAT, marks=pytest.mark.slow),
    ],
)
def test_every_architecture_is_solved_whole(name, recipe, most):
    model = make(name)
    result = lowbit.quantize(model, recipe, solver=PLAIN, calibration=IDS)
    packed = {n for n, m in model.named_modules() if isinstance(m, QuantModule)}
    assert {d.name for d in result.plan.quantized} == packed
    decoded = decoded_model(model, name)
    assert relative(output(model), output(decoded)) <= most
    for parameter, change in changes(decoded, name):
        assert change <= (0 if parameter.endswith("bias") else 0.5), parameter


def test_a_lost_layer_and_a_lost_bias_exceed_the_bound():
    model = make("bart")
    lowbit.quantize(model, "int4-static", solver=PLAIN, calibration=IDS)
    expected = output(decoded_model(model, "bart"))
    errors = [*errors_without_a_layer(model, expected), *errors_without_a_bias(model, expected)]
    assert len(errors) == 16 + 13
    for layer, error in errors:
        assert error > STATIC, layer


def test_the_stages_of_an_encoder_decoder_follow_the_data():
    model = make("bart")
    owners = make_plan(model, load_recipe("int4-all")).owners
    stages = find_stages(model, owners, batches_of(IDS, model)[0])
    assert [stage.name for stage in stages] == STAGES["bart"]
    assert sum(len(stage.decisions) for stage in stages) == len(owners)


@pytest.mark.parametrize(
    "name", ["bart", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "t5"))]
)
def test_each_layer_is_solved_on_what_the_quantized_layers_before_it_compute(name, monkeypatch):
    """Oracle: a full forward pass of the model as it is when the stage's turn comes."""
    model = make(name)
    batches = batches_of(IDS, model)
    seen = {}
    solve = Solver.solve

    def spy(solver, decision, weight, hessian=None):
        seen.setdefault(decision.name, hessian.clone())
        return solve(solver, decision, weight, hessian)

    monkeypatch.setattr(Solver, "solve", spy)
    expected = {}
    original = walk.observe

    def watching(playback, stage, users):
        sums, hooks = {}, []
        for layer, module in users.items():

            def hook(module, args, layer=layer):
                x = args[0].flatten(0, -2).double()
                total, count = sums.get(layer, (0, 0))
                sums[layer] = total + x.T @ x, count + len(x)

            hooks.append(module.register_forward_pre_hook(hook))
        for batch in batches:
            playback.model(**batch)
        for hook in hooks:
            hook.remove()
        expected.update({layer: total / count for layer, (total, count) in sums.items()})
        return original(playback, stage, users)

    monkeypatch.setattr(walk, "observe", watching)
    lowbit.quantize(model, "int2", solver=PLAIN, calibration=IDS)
    assert expected.keys() == seen.keys() and len(seen) >= 8
    for layer, hessian in seen.items():
        error = (hessian - expected[layer]).norm() / expected[layer].norm()
        assert error <= 1e-5, layer


def test_padding_is_not_looked_at():
    model = make("bert")
    padded = torch.cat([IDS, torch.full((8, 6), 5)], 1)
    mask = (torch.arange(26) < 20).long().expand(8, -1)
    results = []
    for batch in ({"input_ids": IDS}, {"input_ids": padded, "attention_mask": mask}):
        model = make("bert")
        lowbit.quantize(model, "int4", solver=PLAIN, calibration=[batch])
        results.append(output(model))
    assert ((results[0] - results[1]).norm() <= 0.05 * results[0].norm()).item()


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("gpt2", PLAIN),
        pytest.param("bart", PLAIN, marks=pytest.mark.slow),
        pytest.param("gpt2", {"name": "autoround", "iterations": 3}, marks=pytest.mark.slow),
        pytest.param("gpt2", PLAIN | {"rotate": True}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_walk_goes_on_to_the_same_result(name, solver, tmp_path, monkeypatch):
    whole, stopped = make(name), make(name)
    lowbit.quantize(whole, "int3-all", solver=solver, calibration=IDS)
    before = weights(stopped)
    solve, calls, first = walk._solve, [], STAGES[name][:2]

    def killed(playback, reference, stage, *options):
        if calls == first:
            raise KeyboardInterrupt
        calls.append(stage.name)
        return solve(playback, reference, stage, *options)

    monkeypatch.setattr(walk, "_solve", killed)
    options = {"solver": solver, "calibration": IDS, "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        lowbit.quantize(stopped, "int3-all", **options)
    assert same(before, weights(stopped))
    calls.clear()
    lowbit.quantize(stopped, "int3-all", **options)
    assert calls == STAGES[name][2:]
    assert same(weights(whole), weights(stopped))


def test_another_run_does_not_take_over_the_work_of_one(tmp_path):
    lowbit.quantize(make("gpt2"), "int3", solver=PLAIN, calibration=IDS, work=tmp_path / "work")
    with pytest.raises(UsageError, match="with other recipe: finish that run, or remove"):
        lowbit.quantize(make("gpt2"), "int2", solver=PLAIN, calibration=IDS, work=tmp_path / "work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not empty"):
        lowbit.quantize(make("gpt2"), "int2", solver=PLAIN, calibration=IDS, work=tmp_path / "mine")


def test_a_run_that_finished_nothing_leaves_nothing_and_hinders_no_other(tmp_path):
    work = tmp_path / "work"
    with pytest.raises(UsageError, match="is for binary codes"):
        lowbit.quantize(make("gpt2"), "int3", solver="binary", calibration=IDS, work=work)
    assert not work.exists()
    work.mkdir()
    for foreign in ('{"title": "of somebody else"}', "[1]", "half a"):
        (work / "run.json").write_text(foreign)
        with pytest.raises(UsageError, match="with other recipe"):
            lowbit.quantize(make("gpt2"), "int3", solver=PLAIN, calibration=IDS, work=work)
    killed = dict.fromkeys(("recipe", "solver", "weights", "calibration data"), "before a stage")
    (work / "run.json").write_text(json.dumps(killed))
    lowbit.quantize(make("gpt2"), "int3", solver=PLAIN, calibration=IDS, work=work)
    with pytest.raises(UsageError, match="with other recipe: finish that run, or remove"):
        lowbit.quantize(make("gpt2"), "int2", solver=PLAIN, calibration=IDS, work=work)


def test_a_broken_file_of_unfinished_work_gets_one_sentence(tmp_path):
    work = tmp_path / "work"
    lowbit.quantize(make("gpt2"), "int3", solver=PLAIN, calibration=IDS, work=work)
    (work / "0000.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="is broken; remove"):
        lowbit.quantize(make("gpt2"), "int3", solver=PLAIN, calibration=IDS, work=work)


def test_what_is_singular_or_never_seen_is_said():
    model = make("gpt2")
    result = lowbit.quantize(model, "int4", solver=PLAIN, calibration=IDS[:2])
    (note,) = result.notes
    assert note.startswith("8 layers with a singular Hessian, which was damped")
    bert = make("bert")  # its pooler's input is the first token of each sample: 8 of them
    result = lowbit.quantize(bert, "int4", solver=PLAIN, calibration=IDS)
    assert any("pooler" in note or "singular" in note for note in result.notes)


def test_the_model_is_left_alone_where_a_solver_fails():
    model = make("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[3, 4] = torch.nan
    before = weights(model)
    with pytest.raises(InputError, match="h.1.mlp.c_fc.weight: 1 of"):
        lowbit.quantize(model, "int4", solver=PLAIN, calibration=IDS)
    assert [n for n in before if not before[n].equal(weights(model)[n])] == [
        "transformer.h.1.mlp.c_fc.weight"
    ]
    assert not any(isinstance(m, QuantModule) for m in model.modules())


@pytest.mark.parametrize(
    ("recipe", "options", "error", "sentence"),
    [
        ("int4", {"solver": "gptq"}, UsageError, "give calibration data"),
        ("int4", {"solver": "magic"}, UsageError, "solver 'magic' is unknown: use nearest"),
        ("int4", {"solver": {"name": "gptq", "x": 1}}, UsageError, "has no option 'x'"),
        ("int4", {"calibration": IDS}, UsageError, "needs no data"),
        ("int4", {"solver": "gptq", "calibration": []}, InputError, "holds no batch"),
        ("int4", {"solver": "gptq", "calibration": IDS + 100}, InputError, "vocabulary of 200"),
        ("bcq3", {"solver": "gptq", "calibration": IDS}, UsageError, "finds affine codes"),
    ],
)
def test_wrong_use_gets_one_sentence(recipe, options, error, sentence):
    with pytest.raises(error, match=sentence):
        lowbit.quantize(make("gpt2"), recipe, **options)


def test_a_corrected_bias_keeps_the_mean_of_what_a_layer_computes():
    means = {}
    for name, correct in (("float", None), ("plain", False), ("corrected", True)):
        model = make("gpt2")
        layer = model.transformer.h[0].attn.c_attn
        if correct is not None:
            solver = {"name": "nearest", "correct_bias": correct}
            calibration = {"calibration": IDS} if correct else {}
            lowbit.quantize(model, "int2", solver=solver, **calibration)
            layer = model.transformer.h[0].attn.c_attn
        seen = []
        layer.register_forward_hook(lambda module, args, y, seen=seen: seen.append(y))
        with torch.no_grad():
            model(IDS)
        means[name] = seen[-1].flatten(0, 1).mean(0)
    off = {name: (mean - means["float"]).norm() for name, mean in means.items()}
    assert (off["plain"] > 0.01).item()
    assert (off["corrected"] <= 0.01 * off["plain"]).item()
