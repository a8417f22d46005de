"""A model on its way to integers: the same parameters, and in the end the same outputs."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

import lowbit
from lowbit import UsageError
from lowbit.nn import QuantLinear
from lowbit.qat.modules import FakeQuantEmbedding, FakeQuantLinear
from lowbit.qat.prepare import QatOptions, finish_qat, prepare_qat, restore_float
from tests.combinations import some
from tests.models import make, output

NAMES = ("bert", "gpt2", "t5", "bart", "llama-tied")


def still(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def trained(model, steps=3, rate=1e-3):
    """A few steps on fixed tokens, so that ranges are known and weights have moved."""
    still(model).train()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    ids = torch.arange(3, 35).reshape(2, 16) * 5 % 200
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :7]
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs)[0].square().mean().backward()
        optimizer.step()
    return model.eval()


WAYS = [
    ("int8-static", QatOptions()),
    ("int8-all-static", QatOptions(ranges="learned")),
    ("int8-static", QatOptions("clipped", "minmax", symmetric=False)),
    ("int4-all-dynamic", QatOptions("lsq")),
    ("int4-static", QatOptions(ranges="mse")),
    ("bcq3", QatOptions()),
    ("int2-static", QatOptions("lsq", "percentile")),
    ("int8-requantized", QatOptions(symmetric=False)),
]


@pytest.mark.parametrize(
    ("name", "recipe", "options"),
    [("bert", *way) for way in WAYS] + [(name, *WAYS[i]) for name in NAMES[1:] for i in (1, 3)],
)
def test_the_integer_model_computes_what_was_trained(name, recipe, options):
    model = make(name)
    prepare_qat(model, recipe, options)
    expected = output(trained(model))
    result = finish_qat(model, progress=False)
    found = output(model)
    # One activation on the edge between two codes may fall on either side.
    assert ((found - expected).norm() <= 1e-2 * expected.norm()).item()
    assert result.errors and not any(m.training for m in model.modules())
    assert any(isinstance(m, QuantLinear) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keep_their_names_identity_and_ties(name):
    model = make(name)
    before = dict(model.named_parameters())
    prepare_qat(model, "int8-all-static")
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(after[n] is p for n, p in before.items())
    assert any(isinstance(m, FakeQuantLinear) for m in model.modules())
    assert any(isinstance(m, FakeQuantEmbedding) for m in model.modules())
    restore_float(model)
    assert {n: type(m) for n, m in make(name).named_modules()} == {
        n: type(m) for n, m in model.named_modules()
    }
    assert all(dict(model.named_parameters())[n] is p for n, p in before.items())


def assigned(model, other):
    """As by a library that puts new parameters in place: those of another model."""
    model.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)


def emptied(model, other):
    model.to_empty(device="cpu").load_state_dict(other.state_dict())


def set_anew(model, other):
    for name, module in other.named_modules():
        if isinstance(module, FakeQuantLinear | FakeQuantEmbedding):
            for key, value in module._parameters.items():
                new = None if value is None else nn.Parameter(value.detach().clone())
                setattr(model.get_submodule(name), key, new)


@pytest.mark.parametrize(
    ("recipe", "tie", "change"),
    some(["int8-all", "bcq2"], [False, True], [assigned, emptied, set_anew], together=2),
)
def test_replaced_parameters_are_those_that_are_stored(recipe, tie, change):
    model, other = make("gpt2"), make("gpt2", seed=1)
    for each in (model, other):
        prepare_qat(each, recipe)
    change(model, other)
    if tie:
        model.tie_weights()
    expected = output(model.eval())
    finish_qat(model, progress=False)
    assert (output(model) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_prepared_model_finishes_alone(copied):
    model = make("gpt2")
    prepare_qat(model, "int4-all-static", QatOptions("lsq"))
    trained(model)
    other, expected = copied(model), output(model)
    trained(model, rate=1e-1)
    finish_qat(other, progress=False)
    found = output(other)
    assert ((found - expected).norm() <= 1e-2 * expected.norm()).item()


def test_a_cast_leaves_ranges_as_they_were_found():
    model = make("bert")
    prepare_qat(model, "int8-static")
    trained(model)
    found = {k: v.clone() for k, v in model.state_dict().items() if "input_quantizer" in k}
    model.to(torch.bfloat16)
    state = model.state_dict()
    assert found and all(torch.equal(state[k], v) for k, v in found.items())
    finish_qat(model, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.set_input_embeddings(nn.Embedding(200, 128)),
        lambda model: model.set_submodule("transformer.wte", nn.Identity()),
        lambda model: model.transformer.h.pop(1),
    ],
)
def test_a_module_that_was_replaced_or_removed_is_named(change):
    model = make("gpt2")
    prepare_qat(model, "int8-all")
    change(model)
    with pytest.raises(UsageError, match="was replaced or removed after prepare_qat"):
        finish_qat(model, progress=False)


@pytest.mark.parametrize("symmetric", [True, False])
def test_requantized_outputs_are_codes_times_their_scale(symmetric, tmp_path):
    model = make("bert")
    prepare_qat(model, "int8-requantized", QatOptions(symmetric=symmetric))
    trained(model)
    finish_qat(model, progress=False)
    layer = model.encoder.layer[0].intermediate.dense
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0)) * 3
    found = layer(x).detach().double().numpy()
    scale, zero = layer.output_scale.item(), int(layer.output_zero_point)
    codes = np.rint(found / scale) + zero
    assert np.abs(found - (codes - zero) * scale).max() <= 1e-6 * np.abs(found).max()
    assert codes.min() >= -128 and codes.max() <= 127 and len(np.unique(codes)) > 20
    plain = QuantLinear.forward(layer, x).detach().double().numpy()
    inside = np.clip(plain, (-127.5 - zero) * scale, (127.5 - zero) * scale)
    assert np.abs(found - inside).max() <= 0.51 * scale
    # What follows is not fused into the layer, which rounds first.
    assert layer.nonlinearity == "identity"
    model.save_pretrained(tmp_path)
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path)), output(model))


def test_until_the_start_training_stays_float_and_only_watches():
    model, plain = make("bert"), make("bert")
    prepare_qat(model, "int4-static", QatOptions(start=2))
    ids = torch.arange(8)[None]
    for step in range(3):
        still(model).train()
        still(plain).train()
        equal = torch.equal(model(ids)[0], plain(ids)[0])
        assert equal == (step < 2)
    model.eval()
    assert not torch.equal(model(ids)[0], plain.eval()(ids)[0])


def test_what_is_prepared_resumes_with_its_ranges():
    model = make("bert")
    prepare_qat(model, "int8-static")
    trained(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = make("bert", seed=1)
    prepare_qat(again, "int8-static")
    assert not again.load_state_dict(state).missing_keys
    assert torch.equal(output(again.eval()), output(model))


def finished(options=None):
    model = make("bert")
    prepare_qat(model, "int8-static", options)
    trained(model)
    finish_qat(model, progress=False)
    return model


def test_the_finished_model_saves_loads_and_refuses_to_train(tmp_path):
    model = finished(QatOptions(symmetric=False))
    expected = output(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(output(loaded), expected)
    with pytest.raises(UsageError, match="is for inference: train the float model"):
        loaded.train()
    layer = loaded.encoder.layer[0].attention.self.query
    assert layer.input_scale.dtype is torch.float32 and layer.activations == "static"
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.encoder.layer[0].attention.self.query.input_scale.dtype is torch.float32


def test_a_static_scale_that_the_folder_lacks_is_refused(tmp_path):
    finished().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if n != "pooler.dense.input_scale"}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match="lacks the stored tensor pooler.dense.input_scale"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (lambda m: finish_qat(m), "was not prepared"),
        (lambda m: (prepare_qat(m, "int8"), prepare_qat(m, "int8")), "is prepared"),
        (lambda m: (prepare_qat(m, "int8-static"), finish_qat(m)), "no activation was seen"),
        (lambda m: lowbit.quantize(m, "int8-static"), "give calibration data"),
        (lambda m: QatOptions("lsp"), "estimator 'lsp' is unknown; did you mean lsq. Use ste"),
        (lambda m: QatOptions(ranges="emma"), "range 'emma' is unknown"),
        (lambda m: QatOptions(start=-1), "start must be at least 0, not -1"),
        (lambda m: QatOptions(range_options={"dekay": 1}), "no option 'dekay'"),
    ],
)
def test_wrong_use_gets_one_sentence(run, sentence):
    with pytest.raises(UsageError, match=sentence):
        run(make("bert"))
