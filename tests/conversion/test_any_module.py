"""Any PyTorch module is quantized, saved, loaded and restored; hooks stay."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from transformers import BertConfig, BertForSequenceClassification

import lowbit
from lowbit import Absmax, InputError, Recipe, Rule, UsageError
from lowbit.nn import QuantModule
from tests.models import BERT, make


class Own(nn.Module):
    """A classifier of words with a tied output, a shared layer and a convolution."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.shared = nn.Linear(64, 64)
        self.blocks = nn.ModuleDict({"a": self.shared, "b": nn.Linear(64, 64)})
        self.conv = nn.Conv1d(64, 64, 1)
        self.norm = nn.BatchNorm1d(64)
        self.out = nn.Linear(64, 50)
        self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.shared(self.words(ids)).relu()
        x = self.blocks["a"](x) + self.blocks["b"](x)
        return self.out(self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2))


IDS = torch.arange(50).reshape(5, 10)


def own(seed=0):
    torch.manual_seed(seed)
    return Own().eval()


@pytest.mark.parametrize("recipe", ["int8-all", "int8-all-dynamic", "int4-all", "bcq4-all"])
def test_a_module_of_ones_own_computes_nearly_the_same(recipe):
    model = own()
    expected = model(IDS).detach()
    result = lowbit.quantize(model, recipe, progress=False)
    bound = 0.3 if "8" not in recipe else 0.03
    assert (model(IDS) - expected).norm() <= bound * expected.norm()
    quantized = {d.name: d.tied_to for d in result.plan.quantized}
    assert quantized == {
        "words": None,
        "shared": None,
        "blocks.a": "shared",
        "blocks.b": None,
        "out": "words",
    }
    assert [d.name for d in result.plan.kept] == ["conv"]
    assert result.plan.parameters == sum(p.numel() for p in own().parameters())
    assert result.after.stored_bytes < result.before.stored_bytes
    assert lowbit.footprint(model).stored_bytes == result.after.stored_bytes


def test_a_preset_without_all_keeps_embeddings_but_knows_no_heads():
    result = lowbit.quantize(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2)), "int8")
    assert [d.name for d in result.plan.quantized] == ["1"]


@pytest.mark.parametrize("recipe", ["int8-all", "int8-all-dynamic", "int4-all", "bcq3-all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_bit_for_bit(recipe, dtype, tmp_path):
    model, fresh = own().to(dtype), own(seed=1).to(dtype)
    lowbit.quantize(model, recipe, progress=False)
    expected = model(IDS)
    lowbit.save(model, tmp_path / "saved")
    lowbit.load(fresh, tmp_path / "saved")
    assert torch.equal(fresh(IDS), expected)
    assert fresh.out.tied_to is fresh.words
    lowbit.save(fresh, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


def test_static_activations_are_calibrated_saved_and_loaded(tmp_path):
    model, fresh = own(), own(seed=1)
    lowbit.quantize(model, "int8-static", progress=False, calibration=[{"ids": IDS}])
    lowbit.save(model, tmp_path / "saved")
    lowbit.load(fresh, tmp_path / "saved")
    assert torch.equal(fresh(IDS), model(IDS))


def test_a_solver_learns_from_the_inputs_of_any_module():
    model = own()
    result = lowbit.quantize(
        model, "int4", progress=False, calibration=[{"ids": IDS}], solver="gptq"
    )
    assert len(result.errors) == 2


def test_token_ids_alone_do_not_calibrate_any_module():
    with pytest.raises(UsageError, match="Own needs batches that are mappings"):
        lowbit.quantize(own(), "int8-static", progress=False, calibration=IDS)


def test_restoring_gives_the_float_modules_with_decoded_weights(tmp_path):
    model = own()
    modules, float_weight = dict(model.named_modules()), model.shared.weight.detach().clone()
    lowbit.quantize(model, "int8-all", progress=False)
    expected = model(IDS)
    lowbit.restore_float(model)
    assert all(modules[name] is module for name, module in model.named_modules())
    assert model.shared is model.blocks["a"] and model.out.weight is model.words.weight
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-5)
    assert 0 < (model.shared.weight - float_weight).abs().max() < 0.01
    with pytest.raises(UsageError, match="was not quantized as a whole"):
        lowbit.save(model, tmp_path / "saved")
    lowbit.quantize(model, "int8-all", progress=False)


def test_a_layer_in_two_places_is_stored_once(tmp_path):
    model = own()
    lowbit.quantize(model, "int8", progress=False)
    assert isinstance(model.blocks["a"], QuantModule)
    assert model.blocks["a"].tied_to is model.shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.to(torch.bfloat16), "computes in bfloat16 here and in float32"),
        (lambda m: setattr(m, "conv", nn.Conv1d(64, 64, 3)), "conv.weight is .* in the module"),
        (lambda m: setattr(m, "norm", nn.Identity()), "the module lacks norm"),
        (lambda m: setattr(m, "extra", nn.Linear(2, 2)), "the folder lacks extra.bias"),
        (lambda m: setattr(m, "shared", nn.Identity()), "shared, but Identity is not a kind"),
        (lambda m: delattr(m, "shared"), "lists shared, which Own does not have"),
        (lambda m: m.to("meta"), "on the meta device"),
    ],
)
def test_a_module_that_differs_is_refused_and_left_alone(change, message, tmp_path):
    model, other = own(), own()
    lowbit.quantize(model, "int8-all", progress=False)
    lowbit.save(model, tmp_path / "saved")
    change(other)
    before = {name: id(module) for name, module in other.named_modules()}
    with pytest.raises(InputError, match=message):
        lowbit.load(other, tmp_path / "saved")
    assert {name: id(module) for name, module in other.named_modules()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        lowbit.load(own(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=r"not what lowbit.save writes"):
        lowbit.load(own(), tmp_path)


def test_a_full_folder_is_replaced_only_when_asked(tmp_path):
    model = own()
    lowbit.quantize(model, "int8", progress=False)
    lowbit.save(model, tmp_path / "saved")
    with pytest.raises(UsageError, match="not empty"):
        lowbit.save(model, tmp_path / "saved")
    lowbit.save(model, tmp_path / "saved", overwrite=True)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_own_transformer_computes_nearly_the_same(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        expected = model(x)
        result = lowbit.quantize(model, "int8", progress=False)
        assert (model(x) - expected).norm() <= 0.02 * expected.norm()
    kept = {d.name: d.reason for d in result.plan.kept}
    assert "MultiheadAttention is not a kind" in kept["layers.0.self_attn"]


def test_a_transformers_model_inside_keeps_its_head_and_saves_itself(tmp_path):
    torch.manual_seed(0)
    inner = BertForSequenceClassification(BertConfig(**BERT))
    model = nn.ModuleDict({"inner": inner, "out": nn.Linear(2, 2)}).eval()
    result = lowbit.quantize(model, "int8", progress=False)
    kept = {d.name: d.reason for d in result.plan.kept}
    assert "keeps @head" in kept["inner.classifier"] and isinstance(model.out, QuantModule)
    inner.save_pretrained(tmp_path / "inner")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "inner").eval()
    ids = torch.arange(3, 12)[None]
    assert torch.equal(again(ids).logits, inner(ids).logits)
    lowbit.restore_float(model)
    assert not any(isinstance(m, QuantModule) for m in model.modules())
    assert not hasattr(inner, "hf_quantizer")


def test_qat_takes_any_module():
    model = own().train()
    lowbit.prepare_qat(model, "int8")
    model(IDS).square().mean().backward()
    model.eval()
    expected = model(IDS).detach()
    lowbit.finish_qat(model, progress=False)
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)


def test_simulate_and_explain_take_any_module():
    assert lowbit.simulate(own(), "absmax")
    model = own()
    lowbit.quantize(model, "int8", progress=False)
    assert "shared" in str(lowbit.explain(model))


def test_what_is_no_module_or_a_lone_layer_is_refused_with_a_sentence():
    with pytest.raises(UsageError, match=r"nn.Module is needed, not dict"):
        lowbit.quantize({}, "int8")
    with pytest.raises(UsageError, match=r"a Linear is replaced in the module that holds it"):
        lowbit.quantize(nn.Linear(4, 4), "int8")


def test_weights_without_data_or_shape_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(InputError, match=r"0.weight is on the meta device"):
        lowbit.quantize(model, "int8", progress=False)
    with pytest.raises(InputError, match=r"1.weight has no shape yet"):
        lowbit.quantize(nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(4)), "int8", progress=False)


@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (8, 0), (1, 1)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_weights_are_quantized_or_kept(rows, columns):
    model = nn.Sequential(nn.Linear(columns, rows), nn.Linear(8, 8)).eval()
    x = torch.randn(3, columns)
    expected = model[0](x).detach()
    lowbit.quantize(model, "int8", progress=False)
    assert torch.allclose(model[0](x), expected, atol=0.02)


COMPUTED = {
    "parametrized": (parametrizations.orthogonal, "remove_parametrizations"),
    "weight norm": (parametrizations.weight_norm, "remove_parametrizations"),
    "spectral norm": (parametrizations.spectral_norm, "remove_parametrizations"),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), r"prune.remove"),
    "pruned bias": (lambda m: prune.l1_unstructured(m, "bias", 0.5), r"prune.remove"),
    "old weight norm": (weight_norm, "remove_weight_norm"),
    "old spectral norm": (nn.utils.spectral_norm, "remove_spectral_norm"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_a_weight_computed_from_others_is_refused_unless_it_is_kept(how):
    change, remedy = COMPUTED[how]
    model = own()
    change(model.shared)
    with pytest.raises(InputError, match=f"shared.*is computed from other tensors.*{remedy}"):
        lowbit.quantize(model, "int8", progress=False)
    kept = Recipe((Rule("*shared*"), Rule("blocks.a*"), Rule("@linear", Absmax(8))))
    lowbit.quantize(model, kept, progress=False)
    assert isinstance(model.blocks["b"], QuantModule) and not isinstance(model.shared, QuantModule)


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer, self.a = base, nn.Linear(64, 2)

    def forward(self, x):
        return self.base_layer(x) + self.a(x)[..., :1]


def test_adapters_are_refused():
    model = own()
    model.blocks["b"] = Adapted(model.blocks["b"])
    with pytest.raises(InputError, match=r"blocks.b has an adapter .*merge_and_unload"):
        lowbit.quantize(model, "int8", progress=False)


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(8))


def test_what_another_library_quantized_is_refused():
    model = own()
    model.blocks["b"] = Elsewhere()
    with pytest.raises(InputError, match=r"blocks.b is already quantized \(tests\)"):
        lowbit.quantize(model, "int8", progress=False)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_quantized_is_refused():
    model = torch.ao.quantization.quantize_dynamic(own(), {nn.Linear})
    with pytest.raises(InputError, match=r"already quantized \(torch.ao\)"):
        lowbit.quantize(model, "int8-all", progress=False)


def test_masks_of_bytes_do_not_look_quantized():
    model = own()
    model.shared.register_buffer("bias_mask", torch.ones(8, 8, dtype=torch.uint8))
    lowbit.quantize(model, "int8", progress=False)


def hooked(model, names):
    """Every kind of hook on the modules of these names, and what they have seen."""
    seen, handles = [], []
    for name in names:
        module = model.get_submodule(name)

        def note(kind, name=name):
            return lambda *_: seen.append((name, kind))

        handles += [
            module.register_forward_pre_hook(note("before")),
            module.register_forward_hook(note("after")),
            module.register_forward_hook(note("after, always"), always_call=True),
            module.register_forward_pre_hook(note("before, kwargs"), with_kwargs=True),
            module.register_forward_hook(note("after, kwargs"), with_kwargs=True),
            module.register_state_dict_pre_hook(note("before saving")),
            module.register_state_dict_post_hook(note("after saving")),
        ]
    return seen, handles


def pass_and_save(model, ids):
    model(ids)
    model.state_dict()


@pytest.mark.parametrize("kind", ["own", "bert"])
def test_hooks_stay_on_the_way_there_and_back(kind):
    model = own() if kind == "own" else make("bert")
    names = (
        ["words", "blocks.b", "out"]
        if kind == "own"
        else ["embeddings.word_embeddings", "encoder.layer.0.attention.self.key"]
    )
    seen, handles = hooked(model, names)
    pass_and_save(model, IDS)
    expected = copy.copy(seen)
    assert len(expected) == 7 * len(names)
    lowbit.quantize(model, "int8-all", progress=False)
    seen.clear()
    pass_and_save(model, IDS)
    assert seen == expected
    if kind == "own":
        lowbit.restore_float(model)
    else:
        model.dequantize()
    seen.clear()
    pass_and_save(model, IDS)
    assert seen == expected
    lowbit.quantize(model, "int8-all", progress=False)
    for handle in handles:
        handle.remove()
    seen.clear()
    pass_and_save(model, IDS)
    assert not seen


def test_hooks_change_inputs_outputs_and_gradients():
    model = own()
    model.shared.register_forward_hook(lambda module, args, y: y * 0 + 1)
    model.blocks["b"].register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    seen = []
    model.out.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    expected = model(IDS).detach()
    lowbit.quantize(model, "int8", progress=False)
    y = model(IDS)
    assert (y - expected).norm() <= 0.02 * expected.norm()
    y.sum().backward()
    assert seen == [y.shape]
