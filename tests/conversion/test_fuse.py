"""Fused models compute what they did, and are the same models to all who look at them."""

import copy
import threading

import pytest
import torch
from torch import nn
from transformers.activations import GELUActivation, NewGELUActivation
from transformers.models.bert.modeling_bert import BertIntermediate, BertLayer
from transformers.models.distilbert.modeling_distilbert import FFN
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1MLP
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.marian.modeling_marian import MarianDecoderLayer
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense

import lowbit
from lowbit.conversion.fuse import AppliedBefore, fuse, layer_before, unfuse
from lowbit.nn import QuantLinear
from tests.combinations import some
from tests.models import MODELS, VOCABULARY, make, output

every_model = pytest.mark.parametrize("name", MODELS)
every_model_by_one_of_two = pytest.mark.parametrize(
    ("name", "recipe"), some(MODELS, ["int8-dynamic", "int4"])
)
# Functions that follow a layer, and groups of layers that share their input.
FUSED = {
    "bert": (2, 2),
    "bert-one-head": (2, 2),
    "bert-classifier": (2, 2),
    "bert-mlm": (2, 2),
    "distilbert": (2, 2),
    "gpt2": (2, 0),
    "llama-tied": (2, 4),
    "llama-untied": (2, 4),
    "bart": (2, 3),
    "marian": (2, 3),
    "t5": (2, 3),
}


def quantized(name, recipe="int8-dynamic"):
    model = make(name)
    lowbit.quantize(model, recipe, progress=False)
    return model


def layers(model):
    return [m for m in model.modules() if isinstance(m, QuantLinear)]


def groups(model):
    return list({id(m.shared): m.shared for m in layers(model) if m.shared is not None}.values())


def counts(model):
    applied = sum(isinstance(m, AppliedBefore) for m in model.modules())
    return applied, len(groups(model))


class TestAppliedBefore:
    """The layer applies the function only as long as nobody would notice."""

    def block(self):
        model = quantized("bert", "int8")
        return model, model.encoder.layer[0].intermediate

    @pytest.mark.parametrize("kind", [nn.ReLU, nn.Tanh, nn.Identity])
    def test_another_function_put_in_its_place_is_applied_alone(self, kind):
        model, block = self.block()
        twin = copy.deepcopy(model).dequantize()
        kept = block.intermediate_act_fn  # somebody still holds the old one
        block.intermediate_act_fn = kind()
        twin.encoder.layer[0].intermediate.intermediate_act_fn = kind()
        y, wanted = output(model), output(twin)
        assert ((y - wanted).abs() <= 1e-4 * wanted.abs().max()).all()
        block.intermediate_act_fn = kept
        assert torch.equal(output(model), output(self.block()[0]))

    def test_what_a_module_around_the_layer_adds_is_under_the_function(self):
        class Shifted(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base = base

            def forward(self, x):
                return self.base(x) - 1

        model, block = self.block()
        twin = copy.deepcopy(model).dequantize()
        plain, layer = output(model), block.dense
        block.dense = Shifted(layer)
        of_twin = twin.encoder.layer[0].intermediate
        of_twin.dense = Shifted(of_twin.dense)
        y, wanted = output(model), output(twin)
        assert ((y - wanted).abs() <= 1e-4 * wanted.abs().max()).all()
        block.dense = layer
        assert torch.equal(output(model), plain)

    @pytest.mark.parametrize("hooked", ["layer", "function", "before", "after"])
    def test_hooks_see_what_they_see_in_the_float_model(self, hooked):
        model, block = self.block()
        twin = copy.deepcopy(model).dequantize()
        plain = output(model)
        seen = []

        def listen(block, applied):
            act = block.intermediate_act_fn
            listeners = {
                "layer": (block.dense.register_forward_hook, lambda m, a, y: seen.append(y)),
                "function": (
                    (act.function if applied else act).register_forward_hook,
                    lambda m, a, y: seen.append(a[0]),
                ),
                "before": (act.register_forward_pre_hook, lambda m, a: seen.append(a[0])),
                "after": (act.register_forward_hook, lambda m, a, y: seen.append(a[0])),
            }
            register, hook = listeners[hooked]
            return register(hook)

        handle = listen(block, True)
        listen(twin.encoder.layer[0].intermediate, False)
        y = output(model)
        output(twin)
        ours, wanted = seen
        assert (ours < -0.5).any()  # as no output of a GELU is
        assert ((ours - wanted).abs() <= 1e-4 * wanted.abs().max()).all()
        assert ((y - plain).abs() <= 1e-5 * plain.abs().max()).all()
        handle.remove()
        assert torch.equal(output(model), plain)

    def test_a_copy_of_the_model_minds_its_own_function(self):
        model, block = self.block()
        twin = copy.deepcopy(model)
        twin.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()
        assert block.dense.nonlinearity_now() == "gelu"
        assert twin.encoder.layer[0].intermediate.dense.nonlinearity_now() == "identity"


class TestModels:
    @every_model
    def test_quantizing_and_loading_fuse(self, name, tmp_path):
        model = quantized(name)
        assert counts(model) == FUSED[name]
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert counts(again) == FUSED[name]
        assert torch.equal(output(again), output(model))

    @every_model_by_one_of_two
    def test_shared_inputs_change_no_bit(self, name, recipe):
        model = quantized(name, recipe)
        fused = [output(model) for _ in range(3)]
        for layer in layers(model):
            layer.shared = None
        apart = output(model)
        assert all(torch.equal(result, apart) for result in fused)

    @every_model_by_one_of_two
    def test_nonlinearities_change_as_little_as_rounding_does(self, name, recipe):
        model = quantized(name, recipe)
        fused = output(model)
        unfuse(model)
        assert counts(model) == (0, 0)
        apart = output(model)
        # One last bit of an activation may move its int8 code by one.
        bound = 2e-3 if recipe.endswith("dynamic") else 2e-6
        assert (fused - apart).norm() <= bound * apart.norm()
        fuse(model)
        assert torch.equal(output(model), fused)

    @every_model
    def test_names_parameters_and_buffers_stay(self, name):
        model = quantized(name)
        fused = model.state_dict()
        unfuse(model)
        apart = model.state_dict()
        assert list(fused) == list(apart)
        assert all(torch.equal(fused[key], apart[key]) for key in apart)

    @every_model
    def test_dequantizing_gives_the_float_model_back(self, name):
        model = quantized(name).dequantize()
        assert [type(m) for m in model.modules()] == [type(m) for m in make(name).modules()]

    @every_model
    def test_a_copy_is_fused_by_itself(self, name):
        model = quantized(name)
        wanted = output(model)
        twin = copy.deepcopy(model)
        own = set(map(id, twin.modules()))
        assert counts(twin) == FUSED[name]
        assert all(id(m) in own for group in groups(twin) for m in group.members)
        assert torch.equal(output(twin), wanted)

    def test_fusing_twice_is_fusing_once(self):
        model = quantized("bert")
        before = groups(model)
        fuse(model)
        assert counts(model) == FUSED["bert"]
        assert [id(group) for group in groups(model)] == [id(group) for group in before]

    def test_gradients_reach_the_embeddings_as_before(self):
        model = quantized("bert")
        ids = torch.arange(3, 19)[None]
        gradients = []
        for change in (fuse, unfuse):
            change(model)
            model.zero_grad()
            model(ids).last_hidden_state.square().sum().backward()
            gradients.append(model.embeddings.word_embeddings.weight.grad.clone())
        assert gradients[1].norm() > 0
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("name", ["bart", "marian", "t5"])
    def test_a_cross_attention_is_tried_once(self, name):
        model = quantized(name)
        for _ in range(2):
            output(model)
        assert sorted(group.pays for group in groups(model)) == [False, True, True]

    @pytest.mark.parametrize("name", ["bart", "t5", "llama-tied", "gpt2"])
    def test_generation_is_the_same(self, name):
        model = quantized(name)
        ids = torch.arange(3, 19).reshape(2, 8) % VOCABULARY
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        fused = model.generate(ids, **options)
        for layer in layers(model):
            layer.shared = None
        assert torch.equal(model.generate(ids, **options), fused)


class Before(nn.Module):
    """Blocks as they may be written; `forward` is what counts."""

    def __init__(self):
        super().__init__()
        self.lin, self.other, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.GELU()


class Nested(Before):
    def forward(self, x):
        return self.other(self.act(self.lin(x)))


class OneAfterTheOther(Before):
    def forward(self, x):
        y = self.lin(x)
        y = self.act(y)
        return y


class Inherited(OneAfterTheOther):
    pass


class SomethingBetween(Before):
    def forward(self, x):
        y = self.lin(x)
        y = y * 2
        return self.act(y)


class NotOverwritten(Before):
    def forward(self, x):
        y = self.lin(x)
        z = self.act(y)
        return z + y


class AppliedTwice(Before):
    def forward(self, x):
        return self.act(self.other(self.act(self.lin(x))))


class UsedTwice(Before):
    def forward(self, x):
        return self.act(self.lin(x)) + self.lin(x)


class UsedInAnotherMethod(Nested):
    def weight(self):
        return self.lin.weight


class OfAnother(Before):
    def forward(self, x):
        return self.act(self.other(x) + self.lin(x))


class TestReading:
    """A layer is found only where the source leaves no doubt."""

    @pytest.mark.parametrize(
        ("block", "function", "layer"),
        [
            (BertIntermediate, "intermediate_act_fn", "dense"),
            (FFN, "activation", "lin1"),
            (GPT2MLP, "act", "c_fc"),
            (LlamaMLP, "act_fn", "gate_proj"),
            (MarianDecoderLayer, "activation_fn", "fc1"),
            (T5DenseActDense, "act", "wi"),
            (T5DenseGatedActDense, "act", "wi_0"),
            (FalconH1MLP, "act_fn", None),  # multiplies in between
            (Gemma3nTextMLP, "act_fn", None),  # drops the smaller ones in between
            (BertLayer, "intermediate_act_fn", None),
            (Nested, "act", "lin"),
            (OneAfterTheOther, "act", "lin"),
            (Inherited, "act", "lin"),
            (SomethingBetween, "act", None),
            (NotOverwritten, "act", None),
            (AppliedTwice, "act", None),
            (UsedTwice, "act", None),
            (UsedInAnotherMethod, "act", None),
            (OfAnother, "act", None),
        ],
    )
    def test_the_layer_before_a_function_is_found(self, block, function, layer):
        assert layer_before(block, function) == layer

    def test_a_block_without_source_is_left_alone(self):
        namespace = {"Before": Before}
        exec("class Typed(Before):\n def forward(self, x): return self.act(self.lin(x))", namespace)
        assert layer_before(namespace["Typed"], "act") is None

    def test_an_unknown_function_is_left_alone(self):
        model = make("bert")
        model.encoder.layer[0].intermediate.intermediate_act_fn = nn.Tanh()
        model.encoder.layer[1].intermediate.intermediate_act_fn = NewGELUActivation()
        lowbit.quantize(model, "int8", progress=False)
        first, second = (layer.intermediate for layer in model.encoder.layer)
        assert type(first.intermediate_act_fn) is nn.Tanh
        assert first.dense.nonlinearity == "identity"
        assert second.dense.nonlinearity == "gelu_tanh"

    def test_a_layer_that_another_block_uses_too_is_left_alone(self):
        model = quantized("bert")
        unfuse(model)
        first, second = (layer.intermediate for layer in model.encoder.layer)
        model.probe = nn.Sequential(first.dense)
        fuse(model)
        assert first.dense.nonlinearity == "identity"
        assert second.dense.nonlinearity == "gelu"

    def test_a_layer_that_stays_float_keeps_its_function(self):
        model = make("bert")
        rules = [{"match": "*layer.0.intermediate.dense", "keep": True}]
        rules += [{"match": "@linear", "scheme": "absmax", "bits": 8, "granularity": "channel"}]
        lowbit.quantize(model, {"name": "mine", "rules": rules}, progress=False)
        blocks = [layer.intermediate.intermediate_act_fn for layer in model.encoder.layer]
        assert [type(block) for block in blocks] == [GELUActivation, AppliedBefore]


class TestSharedInput:
    """What is computed ahead is used for the same tensor, by the same thread, and once."""

    def three(self):
        attention = quantized("bert").encoder.layer[0].attention.self
        return attention.query, attention.key, attention.value

    def alone(self, layer, x):
        shared, layer.shared = layer.shared, None
        y = layer(x)
        layer.shared = shared
        return y

    @torch.no_grad()
    def test_another_tensor_and_one_written_to_are_computed_anew(self):
        query, key, value = self.three()
        x = torch.randn(5, 128)
        query(x)
        twin = x.clone()
        assert torch.equal(key(twin), self.alone(key, twin))
        x.mul_(2)
        assert torch.equal(value(x), self.alone(value, x))

    @torch.no_grad()
    def test_any_order_and_any_number_of_calls_is_right(self):
        members = self.three()
        x = torch.randn(5, 128)
        for number in (1, 0, 0, 2, 1, 1, 0, 2):
            assert torch.equal(members[number](x), self.alone(members[number], x)), number

    @torch.no_grad()
    def test_nothing_is_kept_when_all_have_been_called(self):
        members = self.three()
        x = torch.randn(5, 128)
        for member in members:
            member(x)
        pending = members[0].shared._pending
        assert members[0].shared.pays and pending.x is None and not pending.results

    def test_inference_mode_and_gradients_give_the_same(self):
        members = self.three()
        x = torch.randn(5, 128)
        with torch.inference_mode():
            ahead = [member(x.clone()) for member in members]
            inner = x.clone()
            ahead = [member(inner) for member in members]
        given = x.clone().requires_grad_()
        for member, y in zip(members, ahead, strict=True):
            assert torch.equal(member(given), y)

    def test_threads_do_not_take_each_others_results(self):
        members = self.three()
        inputs = [torch.randn(3 + i, 128) for i in range(4)]
        with torch.no_grad():
            wanted = [[self.alone(member, x) for member in members] for x in inputs]
        same, start = [], threading.Barrier(len(inputs))

        def work(number):
            start.wait()
            with torch.no_grad():
                for _ in range(30):
                    for member, y in zip(members, wanted[number], strict=True):
                        same.append(torch.equal(member(inputs[number]), y))

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert same == [True] * (4 * 30 * 3) and members[0].shared.pays
