"""Experts of classes that do not describe themselves: taken in by what their forward does."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

import lowbit
from lowbit.conversion.expert_probe import transposed_by_name
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import PRESETS
from lowbit.kernels import native
from lowbit.nn import QuantExperts
from tests.sweep.oracle import int8

EXPERTS, SIZE, INNER = 5, 48, 32
NAMES = ("gate_up_proj", "down_proj")


def longcat():
    """Its last two experts have no weights of their own, and give what they are given."""
    return LongcatFlashExperts(
        LongcatFlashConfig(
            hidden_size=SIZE,
            expert_ffn_hidden_size=INNER,
            n_routed_experts=EXPERTS - 2,
            zero_expert_num=2,
        )
    )


def step():
    config = Step3p7TextConfig(
        hidden_size=SIZE, moe_intermediate_size=INNER, num_local_experts=EXPERTS
    )
    return Step3p7Experts(config, swiglu_limit=0.5)


def llama4_config(**more):
    return Llama4TextConfig(
        hidden_size=SIZE, intermediate_size=INNER, num_local_experts=EXPERTS, **more
    )


def llama4():
    return Llama4TextExperts(llama4_config())


def routed(tokens):
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:3] for _ in range(tokens)])
    weights = torch.rand(tokens, 3, generator=generator)
    return torch.randn(tokens, SIZE, generator=generator), ids, weights


def in_order(tokens):
    return (torch.randn(tokens * EXPERTS, SIZE, generator=torch.Generator().manual_seed(1)),)


KINDS = {
    "of which some have no weights": (longcat, routed, False),
    "whose gate is clamped": (step, routed, False),
    "transposed, all at once": (llama4, in_order, True),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def holder(make):
    experts = make().eval()
    generator = torch.Generator().manual_seed(0)
    for p in experts.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return nn.Sequential(experts)


def rounded(float_holder, transposed):
    """The float experts with weights that were rounded in NumPy."""
    model = copy.deepcopy(float_holder)
    for p in model.parameters():
        for i, weight in enumerate(p.detach()):
            matrix = weight.T if transposed else weight
            near = torch.from_numpy(int8(matrix.contiguous().numpy()))
            p.data[i] = near.T if transposed else near
    return model


@pytest.mark.parametrize("tokens", [1, 7])
def test_they_compute_what_rounded_weights_do(kind, tokens):
    make, call, transposed = kind
    model = holder(make)
    wanted = rounded(model, transposed)[0]
    result = lowbit.quantize(model, "int8", progress=False)
    assert result.plan.share == 1
    given = call(tokens)
    with torch.no_grad():
        assert torch.allclose(model[0](*given), wanted(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not native.targets("experts"), reason="there is no native code")
def test_their_products_are_native_and_decode_nothing(kind, monkeypatch):
    make, call, _ = kind
    monkeypatch.delenv("LOWBIT_KERNEL", raising=False)
    model = holder(make)
    given = call(7)
    with torch.no_grad():
        was = model[0](*given)
        lowbit.quantize(model, "int8-dynamic", progress=False)
        monkeypatch.setattr(QuantExperts, "_decoded_expert", None)
        monkeypatch.setattr(QuantExperts, "decoded", None)
        assert (model[0](*given) - was).norm() < 0.03 * was.norm()


def test_a_model_without_data_is_probed_too(kind):
    make, _, transposed = kind
    with torch.device("meta"):
        assert transposed_by_name(make()) == dict.fromkeys(NAMES, transposed)


def test_gradients_are_those_of_rounded_weights(kind):
    make, call, transposed = kind
    model = holder(make)
    wanted = rounded(model, transposed)
    lowbit.quantize(model, "int8", progress=False)
    grads = []
    for each in (model, wanted):
        x, *others = call(3)
        each[0](x.requires_grad_(), *others).square().sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-4 * grads[1].abs().max())


class Table(nn.Module):
    """As experts by their shape; `use` is what is made of their weights."""

    def __init__(self, use, size=SIZE):
        super().__init__()
        self.table = nn.Parameter(torch.randn(EXPERTS, SIZE, size))
        self.use = use

    def forward(self, x, ids, weights):
        return self.use(self.table, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda table, x: x + table.sum((0, 1)),
        lambda table, x: F.linear(x, table[0]) * table.amax(),
        lambda table, x: F.linear(x, table[0] * 2),
        lambda table, x: F.linear(x, table[:, 0]),
        lambda table, x: x,
    ],
    ids=["a sum", "a product and more", "a multiple", "a slice", "nothing"],
)
def test_another_use_of_such_a_parameter_is_none_of_experts(use):
    assert transposed_by_name(Table(use)) == {}
    assert transposed_by_name(Table(lambda table, x: F.linear(x, table[1]))) == {"table": False}


def test_what_is_not_known_is_kept_with_a_reason():
    model = nn.Sequential(nn.Linear(4, 4), JetMoeParallelExperts(EXPERTS, SIZE, INNER))
    (kept,) = make_plan(model, PRESETS["int8"]).kept
    assert kept.name == "1" and "JetMoeParallelExperts" in kept.reason


def test_a_part_of_one_expert_is_decoded(kind):
    make, _, transposed = kind
    model = holder(make)
    wanted = rounded(model, transposed)[0]
    lowbit.quantize(model, "int8", progress=False)
    for name in NAMES:
        stored, near = getattr(model[0], name), getattr(wanted, name).detach()
        x = torch.randn(2, near.shape[2])
        got = F.linear(x, stored[1][:8])
        assert torch.allclose(got, F.linear(x, near[1][:8]), rtol=1e-5, atol=1e-5)
        assert torch.allclose(x @ stored[-1].T, x @ near[-1].T, rtol=1e-5, atol=1e-5)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 17, 80, 3], [7, 7, 2, 90]])).logits


def test_a_saved_model_a_streamed_one_and_one_quantized_while_loading_are_equal(tmp_path):
    torch.manual_seed(0)
    config = llama4_config(
        vocab_size=96,
        intermediate_size_mlp=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = Llama4ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "float")
    result = lowbit.quantize(model, "int8-all", progress=False)
    experts = [d for d in result.plan.owners if d.weights.kind == "experts"]
    assert len(experts) == 4 and all(d.weights.transposed for d in experts)
    assert {d.reason for d in result.plan.kept if d.name.endswith("router")} == {
        "it chooses among experts, which small errors change"
    }
    wanted = logits(model)
    model.save_pretrained(tmp_path / "saved")
    source = str(tmp_path / "float")
    lowbit.quantize_checkpoint(source, "int8-all", tmp_path / "streamed", progress=False)
    for folder in ("saved", "streamed"):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / folder)), wanted)
    onload = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=lowbit.LowbitConfig("int8-all")
    )
    assert torch.equal(logits(onload), wanted)
    lowbit.restore_float(onload)
    assert onload.model.layers[0].feed_forward.experts.down_proj.shape == (EXPERTS, INNER, SIZE)
    assert torch.allclose(logits(onload), wanted, atol=1e-5)
