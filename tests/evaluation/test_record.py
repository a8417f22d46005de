import math

import numpy as np
import pytest
import torch

import lowbit
from lowbit.evaluation.record import ALL_BINS, BINS, record
from lowbit.evaluation.task import Subject
from lowbit.nn import QuantModule
from tests.folders import save
from tests.models import make


def recorded(name, recipe):
    """(record of the float model, record of the quantized one, the two models)"""
    float_model, model = make(name), make(name)
    lowbit.quantize(model, recipe, progress=False)
    reference = Subject("float", float_model, None)
    subject = Subject(recipe, model, None)
    records = record(reference, None), record(subject, None, reference)
    return *records, float_model, model


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart"])
def test_sizes_errors_and_coverage_are_on_record(name):
    before, after, _, model = recorded(name, "int4")
    size = lowbit.footprint(model)
    assert (after.stored_bytes, after.parameters) == (size.stored_bytes, before.parameters)
    assert before.recipe is None and after.recipe["name"] == "int4"
    assert before.bits_per_weight == 32 and 4 < after.bits_per_weight < 32
    assert before.kernels == () and after.kernels
    assert {f.quantized for f in after.coverage} == {True, False} and before.coverage == ()
    errors = {m.name: m.relative_error for m in after.modules if m.relative_error is not None}
    packed = {
        n for n, m in model.named_modules() if isinstance(m, QuantModule) and m.tied_to is None
    }
    assert errors.keys() == packed
    assert all(0 < error < 0.02 for error in errors.values())
    assert after.resident_after_forward_bytes > 0 and after.disk_bytes is None


def test_histograms_count_every_weight_between_the_same_edges():
    before, after, model, quantized = recorded("gpt2", "int3-all")
    first, second = ({m.name: m.histogram for m in r.modules} for r in (before, after))
    assert {n for n, h in first.items() if h} == {n for n, h in second.items() if h}
    name = "transformer.h.0.mlp.c_fc"
    weight = model.get_submodule(name).weight.detach().numpy()
    decoded = lowbit.dequantize(quantized.get_submodule(name).stored_weight).numpy()
    for histogram, values in ((first[name], weight), (second[name], decoded)):
        edges = np.linspace(-histogram.edge, histogram.edge, BINS + 1)
        wanted = np.histogram(values, edges)[0]
        assert sum(histogram.counts) + histogram.outside == weight.size
        # A value on the edge of two bins may fall on either side.
        assert np.abs(np.array(histogram.counts) - wanted).sum() <= 4
    assert first[name].edge == second[name].edge
    assert first[name].outside == pytest.approx(weight.size / 1000, abs=2)


def test_all_weights_are_one_histogram_between_edges_of_the_float_ones():
    before, after, model, quantized = recorded("gpt2", "int3-all")
    names = [m.name for m in before.modules if m.histogram]
    old = [model.get_submodule(name).weight.detach().numpy().ravel() for name in names]
    new = [
        lowbit.dequantize(quantized.get_submodule(name).stored_weight).numpy().ravel()
        for name in names
    ]
    assert before.weights.edge == after.weights.edge
    for histogram, values in ((before.weights, old), (after.weights, new)):
        values, edge = np.concatenate(values), histogram.edge
        assert len(histogram.counts) == ALL_BINS >= 4 * 255
        wanted = np.histogram(values, np.linspace(-edge, edge, ALL_BINS + 1))[0]
        assert sum(histogram.counts) + histogram.outside == values.size
        assert np.abs(np.array(histogram.counts) - wanted).sum() <= 0.002 * values.size
    # A thousandth outside the edges of the modules, and another outside this one.
    assert 0 < before.weights.outside <= np.concatenate(old).size / 500


def test_a_tensor_of_eight_bits_shows_its_levels():
    # One tensor, one scale: at most 255 levels, with empty bins between any two.
    float_model, model = make("bert"), make("bert")
    lowbit.simulate(model, "absmax")
    subject = Subject("float", float_model, None)
    name = "encoder.layer.0.intermediate.dense"
    weight = model.get_submodule(name).weight
    for each in (float_model, model):
        for other, module in each.named_modules():
            if other != name and isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.zeros_(module.weight)
    histogram = record(Subject("simulated", model, None), None, subject).weights
    inside = weight[weight.abs() < histogram.edge].unique()
    assert sum(count > 0 for count in histogram.counts) == len(inside) > 20


def test_a_tied_weight_is_counted_once():
    before, after, *_ = recorded("gpt2", "int4-all")
    for one in (before, after):
        heads = [m for m in one.modules if m.name == "lm_head"]
        assert all(m.histogram is None for m in heads)


def test_reading_the_weights_leaves_the_model_as_it_was():
    *_, model = recorded("bert", "int4")
    ids = torch.arange(8)[None]
    other = make("bert")
    lowbit.quantize(other, "int4", progress=False)
    with torch.no_grad():
        assert torch.equal(model(ids)[0], other(ids)[0])


def test_what_was_made_from_a_quantized_model_has_no_coverage():
    first, second = make("bert"), make("bert")
    lowbit.quantize(first, "int8", progress=False)
    lowbit.quantize(second, "int4", progress=False)
    found = record(Subject("int4", second, None), None, Subject("int8", first, None))
    assert found.coverage == () and found.recipe["name"] == "int4"


@pytest.mark.parametrize("broken", [[math.nan, math.inf, -math.inf], [math.nan] * (128 * 512)])
def test_weights_that_are_not_finite_lie_outside_of_the_histogram(broken):
    model = make("gpt2")
    weight = model.get_submodule("transformer.h.0.mlp.c_fc").weight
    weight.data.flatten()[: len(broken)] = torch.tensor(broken)
    seen = {m.name: m.histogram for m in record(Subject("m", model, None), None).modules}
    histogram = seen["transformer.h.0.mlp.c_fc"]
    assert math.isfinite(histogram.edge)
    assert histogram.outside == (weight.abs() <= histogram.edge).logical_not().sum()
    assert sum(histogram.counts) + histogram.outside == weight.numel()


def test_pictures_are_left_out_where_nobody_wants_them():
    model = make("bert")
    assert all(
        m.histogram is None for m in record(Subject("m", model, None), None, None, False).modules
    )


@pytest.mark.slow
def test_the_system_tells_the_peak_of_a_process_of_its_own(tmp_path):
    folder = save("gpt2", tmp_path / "model")
    subject = Subject("m", make("gpt2"), None)
    seen = record(subject, folder, None)
    assert seen.disk_bytes == (folder / "model.safetensors").stat().st_size
    assert seen.peak_bytes is not None
    assert seen.resident_bytes < seen.peak_bytes < 500 << 20
