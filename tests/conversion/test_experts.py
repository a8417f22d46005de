"""Mixtures of experts, through quantizing, saving, loading and back, against separate layers."""

import copy
import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.activations import SiLUActivation
from transformers.models.aria.configuration_aria import AriaTextConfig
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.configuration_nemotron_h import NemotronHConfig
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.openai_privacy_filter import modeling_openai_privacy_filter as privacy

import lowbit
from lowbit.checkpoint.read import open_tensors
from lowbit.conversion.experts import experts_weights, router_names
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import PRESETS
from lowbit.formats import ExpertsTensor
from lowbit.kernels.native import targets
from lowbit.nn import QuantExperts
from lowbit.quantization import streaming
from tests.sweep.oracle import SeparateExperts, int8

EXPERTS, SIZE, INNER = 5, 48, 32
native = pytest.mark.skipif(
    not targets("experts") or os.environ.get("LOWBIT_KERNEL") == "reference",
    reason="there is no native code",
)


def mixtral_config(**more):
    return MixtralConfig(
        vocab_size=96,
        hidden_size=SIZE,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        **more,
    )


def _privacy():
    config = privacy.OpenAIPrivacyFilterConfig(
        hidden_size=SIZE, intermediate_size=INNER, num_local_experts=EXPERTS
    )
    return privacy.OpenAIPrivacyFilterExperts(config)


MIXTURES = {
    "gate and up concatenated": lambda: MixtralExperts(mixtral_config()),
    "transposed, interleaved, with biases": lambda: GptOssExperts(
        GptOssConfig(hidden_size=SIZE, intermediate_size=INNER, num_local_experts=EXPERTS)
    ),
    "transposed, with biases": _privacy,
    "transposed": lambda: AriaExperts(
        AriaTextConfig(
            hidden_size=SIZE,
            intermediate_size=INNER,
            moe_num_experts=EXPERTS,
            num_attention_heads=4,
        )
    ),
    "without a gate": lambda: NemotronHExperts(
        NemotronHConfig(hidden_size=SIZE, moe_intermediate_size=INNER, n_routed_experts=EXPERTS)
    ),
}


class Holder(nn.Module):
    """A module that has nothing but experts."""

    def __init__(self, kind):
        super().__init__()
        self.experts = MIXTURES[kind]().eval()
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
        self.eval()

    def forward(self, *call):
        return self.experts(*call)


def call(tokens=7, slots=3, seed=1):
    """Tokens, their experts, all different for each token, and the weights of these."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(EXPERTS, generator=generator)[:slots] for _ in range(tokens)]
    ids = torch.stack(ids) if ids else torch.zeros(0, slots, dtype=torch.int64)
    return (
        torch.randn(tokens, SIZE, generator=generator),
        ids,
        torch.rand(tokens, slots, generator=generator),
    )


class Gated(SeparateExperts):
    """The function of the gate is applied by the layer, as where gate and up are layers by
    themselves."""

    def _expert(self, x, number):
        layer = self.up[number]
        layer.set_nonlinearity("silu")
        gate, _ = layer(x).chunk(2, dim=-1)
        layer.set_nonlinearity("identity")
        _, up = layer(x).chunk(2, dim=-1)
        return self.down[number](gate * up)


def separate(holder, recipe):
    """The same experts as quantized linear layers."""
    silu = isinstance(getattr(holder.experts, "act_fn", None), SiLUActivation | nn.SiLU)
    kind = Gated if silu and holder.experts.has_gate else SeparateExperts
    twin = kind(copy.deepcopy(holder.experts), {})
    lowbit.quantize(twin, recipe, progress=False)
    return twin


def quantized(holder, recipe):
    model = copy.deepcopy(holder)
    lowbit.quantize(model, recipe, progress=False)
    return model


@pytest.fixture(params=MIXTURES)
def holder(request):
    return Holder(request.param)


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(mixtral_config()).eval()


IDS = torch.tensor([[5, 17, 80, 3, 9, 44], [7, 7, 2, 90, 31, 1]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


RECIPES = {
    name: {"rules": [{"match": "@linear", "granularity": "group:32", **options}]}
    for name, options in {
        "int8": {"scheme": "absmax", "granularity": "channel"},
        "int4": {"scheme": "zero-point", "bits": 4},
        "int3-dynamic": {"scheme": "zero-point", "bits": 3, "activations": "dynamic"},
        "bcq2": {"scheme": "binary", "bits": 2},
    }.items()
}


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_experts_compute_what_separate_layers_do(holder, recipe):
    with torch.no_grad():
        got = quantized(holder, RECIPES[recipe])(*call())
        wanted = separate(holder, RECIPES[recipe])(*call())
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


@native
@pytest.mark.parametrize("recipe", ["int3-dynamic", "bcq2"])
def test_native_results_have_the_bits_of_separate_layers(holder, recipe):
    model, layers = quantized(holder, RECIPES[recipe]), separate(holder, RECIPES[recipe])
    with torch.no_grad():
        for tokens in (0, 1, 2, 33):
            assert torch.equal(model(*call(tokens)), layers(*call(tokens)))


@native
def test_a_tokens_result_does_not_depend_on_the_tokens_beside_it(holder):
    model, given = quantized(holder, RECIPES["int4"]), call(33)
    with torch.no_grad():
        together = model(*given)
        alone = [model(*(part[i : i + 1] for part in given)) for i in range(33)]
    assert torch.equal(together, torch.cat(alone))


@native
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_summed_in_the_order_of_the_slots(dtype, weights):
    holder = Holder("gate and up concatenated")
    model = quantized(holder, RECIPES["int3-dynamic"]).to(dtype)
    x, ids, shares = call(1000)
    x, shares = x.to(dtype), shares.to(weights)
    with torch.no_grad():
        got = model(x, ids, shares)
        wanted = torch.zeros(1000, SIZE)
        for slot in range(ids.shape[1]):
            one = model(x, ids[:, slot : slot + 1], torch.ones(1000, 1, dtype=dtype))
            wanted += (one * shares[:, slot : slot + 1]).float()
    assert got.dtype == dtype and torch.equal(got, wanted.to(dtype))


def test_the_stored_weights_are_those_of_each_expert(holder):
    model = quantized(holder, "int8")
    scheme = PRESETS["int8"].rules[-1].scheme
    for name, use in experts_weights(holder.experts).items():
        q = model.experts.get_submodule(name).stored_weight
        assert isinstance(q, ExpertsTensor) and q.experts == EXPERTS
        for i, weight in enumerate(getattr(holder.experts, name).detach()):
            alone = scheme.quantize(weight.t() if use.transposed else weight)
            for part, tensor in q.expert(i).tensors().items():
                assert torch.equal(tensor, alone.tensors()[part])


def test_every_parameter_is_accounted_for(holder):
    plan = make_plan(holder, PRESETS["int8"])
    assert plan.parameters == sum(p.numel() for p in holder.parameters())
    matrices = sum(p.numel() for p in holder.parameters() if p.ndim == 3)
    assert plan.quantized_parameters == matrices
    after = lowbit.quantize(copy.deepcopy(holder), "int8", progress=False).after
    assert after.parameters == plan.parameters


def test_scales_beyond_float16_are_float32_for_all_and_change_nothing():
    holder = Holder("gate and up concatenated")
    holder.experts.down_proj.data[2] *= 1e8
    q = quantized(holder, "int8").experts.get_submodule("down_proj").stored_weight
    assert q.tensors()["scale"].dtype == torch.float32
    alone = PRESETS["int8"].rules[-1].scheme.quantize(holder.experts.down_proj[0].detach())
    assert alone.tensors()["scale"].dtype == torch.float16
    assert torch.equal(lowbit.dequantize(q.expert(0)), lowbit.dequantize(alone))


def test_code_that_reads_the_parameters_gets_their_values(holder):
    model = quantized(holder, "int8")
    for name in experts_weights(holder.experts):
        was, stored = getattr(holder.experts, name), getattr(model.experts, name)
        assert isinstance(stored, QuantExperts)
        assert stored.shape == was.shape and stored.dtype == was.dtype
        close = 0.01 * was.abs().max()
        assert (torch.cat([stored[i][None] for i in range(EXPERTS)]) - was).abs().max() <= close
        assert (stored[torch.tensor([1, 1])] - was[1]).abs().max() <= close
        assert (torch.sum(stored, 0) - was.sum(0)).abs().max() <= EXPERTS * close
        assert (stored.transpose(1, 2) - was.transpose(1, 2)).abs().max() <= close
        with pytest.raises(lowbit.UsageError, match="cannot be changed"):
            stored.zero_()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_other_implementations_of_transformers_give_the_same(implementation):
    model = mixtral()
    lowbit.quantize(model, "int8", progress=False)
    assert model.config._experts_implementation == "lowbit"
    wanted = logits(model)
    model.set_experts_implementation(implementation)
    assert torch.allclose(logits(model), wanted, atol=1e-5)


def test_experts_that_stay_float_compute_as_before():
    model = mixtral()
    wanted = logits(model)
    model.set_experts_implementation("lowbit")
    assert torch.equal(logits(model), wanted)


def test_one_projection_can_stay_float():
    model, was = mixtral(), logits(mixtral())
    rules = [
        {"match": "*.down_proj", "keep": True},
        {"match": "@experts", "scheme": "absmax"},
    ]
    result = lowbit.quantize(model, {"rules": rules}, progress=False)
    assert len(result.plan.quantized) == 2
    assert (logits(model) - was).norm() < 0.02 * was.norm()


def test_the_callers_config_is_left_alone():
    model = mixtral()
    config = model.config
    lowbit.quantize(model, "int8", progress=False)
    assert config._experts_implementation != "lowbit"
    assert MixtralForCausalLM(config)(IDS).logits.isfinite().all()


def test_a_saved_model_a_streamed_one_and_one_quantized_while_loading_are_equal(tmp_path):
    model = mixtral()
    model.save_pretrained(tmp_path / "float")
    result = lowbit.quantize(model, "int8-all", progress=False)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model), wanted)
    streamed = lowbit.quantize_checkpoint(
        str(tmp_path / "float"), "int8-all", tmp_path / "streamed", progress=False
    )
    assert streamed.errors == result.errors
    for folder in ("saved", "streamed"):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / folder)), wanted)
    onload = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=lowbit.LowbitConfig("int8-all")
    )
    assert torch.equal(logits(onload), wanted)
    onload.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), wanted)


class Watched:
    """A tensor in a file, and how many numbers were read at a time."""

    def __init__(self, opened, most):
        self.opened, self.most = opened, most
        self.get_shape, self.get_dtype = opened.get_shape, opened.get_dtype

    def __getitem__(self, index):
        part = self.opened[index]
        self.most.append(part.numel())
        return part


@pytest.mark.parametrize("merged", [False, True], ids=["one by one", "in one tensor"])
def test_streaming_reads_one_expert_at_a_time(merged, tmp_path, monkeypatch):
    model = mixtral()
    if merged:
        model._weight_conversions = []
    model.save_pretrained(tmp_path / "float")
    read = []

    @contextmanager
    def watched(files):
        with open_tensors(files) as tensors:
            yield {
                name: Watched(opened, read) if "experts" in name else opened
                for name, opened in tensors.items()
            }

    monkeypatch.setattr(streaming, "open_tensors", watched)
    lowbit.quantize_checkpoint(str(tmp_path / "float"), "int8", tmp_path / "stored", progress=False)
    assert len(read) >= 2 * 2 * EXPERTS and max(read) <= 2 * SIZE * INNER
    lowbit.quantize(model, "int8", progress=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "stored")
    assert torch.equal(logits(loaded), logits(model))


def test_the_config_names_each_parameter_and_has_a_version_that_older_releases_refuse(tmp_path):
    model = mixtral()
    lowbit.quantize(model, "int8", progress=False)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["format_version"] == 2
    entry = stored["modules"]["model.layers.1.mlp.experts.gate_up_proj"]
    assert (entry["format"], entry["experts"], entry["each"]["bits"]) == ("experts", EXPERTS, 8)


def test_a_model_without_experts_keeps_the_first_version():
    assert lowbit.LowbitConfig("int8").to_dict()["format_version"] == 1


def test_other_modules_are_saved_and_loaded_too(holder, tmp_path):
    model = quantized(holder, "int8")
    lowbit.save(model, tmp_path / "saved")
    other = copy.deepcopy(holder)
    for p in other.parameters():
        p.data.zero_()
    lowbit.load(other, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(other(*call()), model(*call()))


def test_restoring_gives_the_float_module_with_rounded_weights(holder):
    model = quantized(holder, "int8")
    with torch.no_grad():
        wanted = model(*call())
    lowbit.restore_float(model)
    shapes = {name: p.shape for name, p in holder.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    with torch.no_grad():
        assert torch.allclose(model(*call()), wanted, atol=1e-5)


def test_routers_stay_float_and_are_told_of():
    model = mixtral()
    assert set(router_names(model)) == {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}
    plan = make_plan(model, PRESETS["int8-all"])
    reasons = {d.name: d.reason for d in plan.kept}
    assert reasons.keys() == router_names(model).keys()
    assert all("chooses among experts" in reason for reason in reasons.values())


def test_a_recipe_gives_experts_bits_of_their_own():
    rules = [
        {"match": "@experts", "scheme": "zero-point", "bits": 2, "granularity": "group:32"},
        {"match": "@linear", "scheme": "zero-point", "bits": 4, "granularity": "group:32"},
    ]
    plan = make_plan(mixtral(), lowbit.Recipe.from_dict({"rules": rules}))
    bits = {d.name.rpartition(".")[2]: d.scheme.bits for d in plan.owners}
    assert bits["gate_up_proj"] == bits["down_proj"] == 2 and bits["q_proj"] == 4


@pytest.mark.parametrize("activations", ["static", "requantized"])
def test_activations_with_scales_from_data_are_refused(activations):
    with pytest.raises(lowbit.UsageError, match="experts"):
        make_plan(mixtral(), PRESETS[f"int8-{activations}"])


def test_a_mixture_of_one_expert_is_one_too(tmp_path):
    config = mixtral_config()
    config.num_local_experts = config.num_experts_per_tok = 1
    model = MixtralForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    lowbit.quantize(model, "int8", progress=False)
    onload = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=lowbit.LowbitConfig("int8")
    )
    assert torch.equal(logits(onload), logits(model))


def test_what_learns_from_data_refuses_experts():
    with pytest.raises(lowbit.UsageError, match="solver gptq learns .* down_proj|gate_up_proj"):
        lowbit.quantize(mixtral(), "int8", solver="gptq", calibration=IDS, progress=False)
    with pytest.raises(lowbit.UsageError, match="quantization-aware training .*@experts"):
        lowbit.prepare_qat(mixtral(), "int8")
    rules = [{"match": "@experts", "keep": True}, {"match": "@linear", "scheme": "absmax"}]
    model = mixtral()
    lowbit.quantize(model, {"rules": rules}, solver="gptq", calibration=IDS, progress=False)
    assert not isinstance(model.model.layers[0].mlp.experts.down_proj, QuantExperts)
    assert logits(model).isfinite().all()


def test_a_solver_without_data_solves_each_expert():
    model, nearest = mixtral(), mixtral()
    lowbit.quantize(nearest, RECIPES["int4"], progress=False)
    lowbit.quantize(model, RECIPES["int4"], solver="hqq", progress=False)
    was = mixtral().model.layers[0].mlp.experts.down_proj.detach()

    def error(found):
        weight = found.model.layers[0].mlp.experts.down_proj.weight
        return (weight - was).abs().pow(0.7).sum()

    assert error(model) < error(nearest)


def test_a_failure_leaves_the_model_as_it_was():
    model, wanted = mixtral(), logits(mixtral())
    model.model.layers[1].mlp.experts.down_proj.data[3, 2, 1] = float("nan")
    with pytest.raises(lowbit.InputError, match="layers.1.mlp.experts.down_proj"):
        lowbit.quantize(model, "int8", progress=False)
    model.model.layers[1].mlp.experts.down_proj.data = (
        mixtral().model.layers[1].mlp.experts.down_proj.data
    )
    assert torch.equal(logits(model), wanted)


def test_plain_transformers_refuses_the_folder(tmp_path):
    from lowbit.checkpoint.guard import guards

    entries = {"model.layers.0.mlp.experts.down_proj": {"format": "experts"}}
    names = guards("model", entries)
    assert "model.layers.0.mlp.experts.down_proj" in names


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def test_mxfp4_is_dequantized_by_transformers_and_then_quantized(tmp_path):
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    state, wanted = load_file(tmp_path / "model.safetensors"), {}
    for name in ("gate_up_proj", "down_proj"):
        stored = f"model.layers.0.mlp.experts.{name}"
        experts, inputs, outputs = state.pop(stored).shape
        # As the format has it: 32 inputs share a power of two, two codes are in a byte.
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 122, codes.shape[:-1], dtype=torch.uint8)
        state |= {f"{stored}_blocks": codes, f"{stored}_scales": scales}
        low_high = np.stack([codes.numpy() & 15, codes.numpy() >> 4], -1)
        groups = FP4[low_high].reshape(experts, outputs, -1, 32)
        groups *= 2.0 ** (scales.numpy()[..., None].astype(np.float32) - 127)
        wanted[name] = groups.reshape(experts, outputs, inputs)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(stored))

    sentence = "already quantized .mxfp4.*transformers loads it as a float model"
    with pytest.raises(lowbit.InputError, match=sentence):
        lowbit.quantize_checkpoint(str(tmp_path), "int8", tmp_path / "out", progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    plan = lowbit.quantize(model, "int8", progress=False).plan
    assert sum(d.weights.kind == "experts" for d in plan.owners) == 2
    for name, weight in wanted.items():
        got = getattr(model.model.layers[0].mlp.experts, name)
        rounded = np.stack([int8(each).T for each in weight])
        assert torch.equal(torch.cat([got[i][None] for i in range(EXPERTS)]), torch.tensor(rounded))
