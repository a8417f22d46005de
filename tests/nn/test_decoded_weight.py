"""`layer.weight` of a quantized layer: its numbers when they are asked for, and never a write."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import RwkvConfig, RwkvForCausalLM

import lowbit
from lowbit.errors import UsageError
from lowbit.formats import CHANNEL, TENSOR, group
from lowbit.kernels import ops
from lowbit.nn import QuantEmbedding, QuantLinear, QuantModule
from lowbit.nn.decoded_weight import DecodedWeight
from lowbit.schemes import Absmax, Binary, Clustered, ZeroPoint
from tests.models import make, output

SCHEMES = [
    Absmax(8, CHANNEL),
    ZeroPoint(4, group(16)),
    ZeroPoint(3, TENSOR),
    Binary(2, group(16)),
    Clustered(Binary(4, group(16)), ratio=2.0),
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def linear(scheme=SCHEMES[0], transposed=False, seed=0):
    torch.manual_seed(seed)
    q = scheme.quantize(torch.randn(24, 40))
    return QuantLinear(q.layout, 40, 24, None, "dynamic", transposed).hold(q), q


def prepared(layer):
    """After a forward pass, in which the stored tensors give way to packed bytes."""
    layer(torch.randn(2, layer.in_features))
    return layer


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_its_numbers_are_those_of_dequantizing(scheme, dtype, transposed):
    layer, q = linear(scheme, transposed)
    layer.to(dtype)
    wanted = ops.dequantize(q, dtype)
    wanted = wanted.t() if transposed else wanted
    for read in (layer.weight, prepared(layer.float()).to(dtype).weight):
        assert read.dtype == dtype and read.shape == wanted.shape
        assert torch.equal(read + 0, wanted)


@every_scheme
def test_reading_it_keeps_the_packed_bytes(scheme):
    layer, _ = linear(scheme)
    packed = prepared(layer).packed
    assert torch.isfinite(layer.weight.sum())
    assert layer.packed is packed


def test_shape_dtype_device_and_views_are_told_without_decoding():
    layer, _ = linear()
    weight = layer.weight
    assert weight.shape == (24, 40) and weight.T.shape == (40, 24)
    assert (weight.dtype, weight.device) == (torch.float32, torch.device("cpu"))
    assert weight.is_contiguous() and not weight.T.is_contiguous()
    assert [part.shape for part in weight.split(10)] == [(10, 40), (10, 40), (4, 40)]
    assert weight.data.view(-1).shape == (960,) and not weight.requires_grad
    assert lowbit.explain(layer).slow_paths == {}


def test_it_is_decoded_once_for_each_time_that_it_is_read():
    layer, _ = linear()
    weight = layer.weight
    weight.sum(), weight.T.sum(), weight[0].sum()
    assert list(lowbit.explain(layer).slow_paths.values()) == [1]
    layer.weight.sum()
    assert list(lowbit.explain(layer).slow_paths.values()) == [2]


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: x @ w.T,
        lambda x, w: F.linear(x, w),
        lambda x, w: x @ w.data.t(),
        lambda x, w: torch.einsum("bi,oi->bo", x, w),
        lambda x, w: torch.cat([x @ part.T for part in w.split(7)], -1),
        lambda x, w: torch.stack([x @ row for row in w.unbind(0)], -1),
        lambda x, w: x @ torch.from_numpy(np.asarray(w).T.copy()),
        lambda x, w: x @ torch.tensor(w.tolist()).T,
        lambda x, w: x @ w.detach().clone().T,
        lambda x, w: x @ pickle.loads(pickle.dumps(w)).T,
        lambda x, w: x @ copy.deepcopy(w).T,
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_model_code_computes_with_it_as_with_any_weight(use, mode):
    layer, q = linear()
    torch.manual_seed(1)
    x = torch.randn(3, 40)
    with mode():
        got = use(x, layer.weight)
    exact = x.double() @ ops.dequantize(q).double().T
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= 1e-5 * exact.abs().max()).all()


def test_gradients_flow_through_it_to_what_it_is_multiplied_with():
    layer, q = linear()
    x = torch.randn(3, 40, requires_grad=True)
    F.linear(x, layer.weight).sum().backward()
    assert torch.equal(x.grad, ops.dequantize(q).sum(0).expand(3, 40))


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.zero_(),
        lambda w: w.data.normal_(),
        lambda w: w.data.copy_(torch.zeros(24, 40)),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w[0].fill_(1.0),
        lambda w: w[0].div_(2),
        lambda w: w.mul_(torch.ones(24, 40)),
        lambda w: w.div_(2, rounding_mode="floor"),
        lambda w: w.mul_(-1),
        lambda w: w.data[3].zero_(),
        lambda w: w.T.add_(1),
        lambda w: torch.add(w + 0, 1, out=w),
        lambda w: nn.init.zeros_(w),
        lambda w: w.requires_grad_(),
    ],
)
def test_writing_to_it_or_a_view_is_refused(write):
    layer, q = linear()
    with pytest.raises(UsageError, match="cannot be changed"):
        write(layer.weight)
    assert torch.equal(layer.weight + 0, ops.dequantize(q))


@every_scheme
@pytest.mark.parametrize("packs", [False, True])
def test_multiplying_it_in_place_multiplies_what_is_stored(scheme, packs):
    layer, q = linear(scheme)
    before = ops.dequantize(q).numpy()
    x = torch.randn(3, 40)
    if packs:
        prepared(layer)
    for write, factor in (
        (lambda w: w.div_(4), 0.25),
        (lambda w: w.mul_(2.0), 0.5),
        (lambda w: w.data.mul_(torch.tensor(4.0)), 2.0),
        (lambda w: w.T.div_(2), 1.0),
    ):
        write(layer.weight)
        np.testing.assert_array_equal(layer.weight.numpy(), before * factor)
        wanted = QuantLinear(q.layout, 40, 24, None, "dynamic").hold(q)(x) * factor
        assert torch.equal(layer(x), wanted)
    assert all(torch.equal(t, q.tensors()[n]) for n, t in layer.stored_weight.tensors().items())


def test_what_was_read_before_follows():
    layer, q = linear()
    weight = layer.weight
    before = weight.numpy()
    weight.data.div_(2)
    np.testing.assert_array_equal(weight.numpy(), before / 2)


@pytest.mark.parametrize("factor", [1e-9, 1e9, 2.0**-18])
def test_a_factor_that_scales_cannot_hold_is_refused(factor):
    layer, q = linear()
    with pytest.raises(UsageError, match="range of torch.float16"):
        layer.weight.mul_(factor)
    assert torch.equal(layer.weight + 0, ops.dequantize(q))


def test_a_model_whose_code_divides_weights_at_inference_is_quantized():
    config = RwkvConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=4, attention_hidden_size=32,
        rescale_every=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = RwkvForCausalLM(config).eval()
    ids = torch.randint(0, 40, (2, 9))
    quantized = copy.deepcopy(model)
    lowbit.quantize(quantized, "int8", progress=False)
    twin = copy.deepcopy(quantized).dequantize()
    assert twin.rwkv.layers_are_rescaled is False
    with torch.no_grad():
        wanted, got = twin(ids).logits, quantized(ids).logits
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=1e-5)
    # The other way round: training takes the division back.
    quantized.train()
    quantized(ids)
    weight = model.rwkv.blocks[3].feed_forward.value.weight.detach().numpy()
    np.testing.assert_array_equal(
        quantized.rwkv.blocks[3].feed_forward.value.stored_weight.scale[:, 0].numpy(),
        (np.abs(weight).max(1) / 127).astype(np.float16),
    )


def test_a_numpy_view_cannot_be_written_to():
    layer, _ = linear()
    array = layer.weight.numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_embedding_has_one_too():
    q = SCHEMES[1].quantize(torch.randn(24, 40))
    table = QuantEmbedding(q.layout, 24, 40, embed_scale=3.0).hold(q)
    table(torch.tensor([1, 2]))
    assert isinstance(table.weight, DecodedWeight)
    assert torch.equal(F.embedding(torch.tensor([5]), table.weight)[0], ops.dequantize(q)[5])


def test_tied_layers_read_the_same_numbers():
    model = make("llama-tied")
    lowbit.quantize(model, "int8-all", progress=False)
    output(model)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.tied_to is table
    assert torch.equal(head.weight + 0, table.weight + 0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama-tied"])
def test_the_first_parameter_tells_dtype_and_device(name):
    model = make(name)
    lowbit.quantize(model, "int8-all", progress=False)
    for module in model.modules():
        if isinstance(module, QuantModule):
            first = next(module.parameters())
            assert (first.dtype, first.device) == (torch.float32, torch.device("cpu"))
    assert not any("compute" in key for key in model.state_dict())
    model.load_state_dict(model.state_dict(), strict=True)
    assert sum(p.numel() for n, p in model.named_parameters() if "compute" in n) == 0


def test_a_model_in_which_every_parameter_is_quantized_still_has_a_dtype():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    q = SCHEMES[0].quantize(model[0].weight.detach())
    model[0] = QuantLinear(q.layout, 8, 8, None).hold(q)
    assert next(model.parameters()).dtype == torch.float32
    assert next(model.to(torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_public_attributes_are_those_of_the_replaced_module():
    from lowbit.conversion.module_weights import WeightName, weights_of
    from lowbit.conversion.swap import swap

    holder = nn.ModuleDict({"table": nn.Embedding(24, 40, padding_idx=3)})
    holder.table.set_by_model_code = "kept"
    weights = weights_of(holder.table)
    q = SCHEMES[0].quantize(holder.table.weight.detach())
    swap(holder, WeightName("table"), weights, q, "float", holder.table.weight)
    assert isinstance(holder.table, QuantEmbedding)
    assert holder.table.padding_idx == 3 and holder.table.set_by_model_code == "kept"
    assert holder.table.max_norm is None
    with pytest.raises(AttributeError, match="reset_parameters"):
        holder.table.reset_parameters()
    with pytest.raises(AttributeError, match="never_there"):
        _ = holder.table.never_there
