"""The plan: every module with weights is quantized or named as kept, and all parameters count."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextScaledWordEmbedding

import lowbit
from lowbit import KEEP, Absmax, Recipe, Rule, UsageError, ZeroPoint
from lowbit.conversion.module_weights import WeightName, weights_of
from lowbit.conversion.plan import Keep, Quantize, TiedTo, make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.conversion.swap import packed_like
from lowbit.formats import group
from lowbit.qat.modules import FakeQuantEmbedding
from tests.models import MODELS, VOCABULARY, make


def decisions(name, recipe):
    plan = make_plan(make(name), load_recipe(recipe))
    return {d.name: d for d in plan.decisions}


@pytest.mark.parametrize("recipe", ["int8", "int4-all"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_counted_once(name, recipe):
    model = make(name)
    plan = make_plan(model, load_recipe(recipe))
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < plan.share < 1
    assert all(d.reason for d in plan.decisions)


@pytest.mark.parametrize("name", MODELS)
def test_every_module_with_a_matrix_is_named(name):
    model = make(name)
    with_matrix = {
        n for n, m in model.named_modules() if any(p.ndim >= 2 for p in m.parameters(recurse=False))
    }
    assert {d.name for d in make_plan(model, load_recipe("int8")).decisions} == with_matrix


def test_conv1d_is_quantized_and_says_so():
    decision = decisions("gpt2", "int4")["transformer.h.0.attn.c_attn"]
    assert decision.quantized and decision.module == "Conv1D"


def test_presets_keep_embeddings_and_heads():
    gpt2 = decisions("gpt2", "int4")
    assert not gpt2["transformer.wte"].quantized
    assert gpt2["lm_head"].tied_to == "transformer.wte" and not gpt2["lm_head"].quantized
    assert "keeps @head" in decisions("bert-classifier", "int4")["classifier"].reason
    assert decisions("bert-classifier", "int4")["bert.pooler.dense"].quantized
    assert "keeps @head" in decisions("llama-untied", "int4")["lm_head"].reason


def test_a_decision_is_one_of_three_and_holds_what_it_needs():
    bert = decisions("bert-mlm", "int4-dynamic")
    dense = bert["bert.encoder.layer.0.output.dense"]
    assert isinstance(dense, Quantize) and dense.activations == "dynamic"
    assert dense.scheme == ZeroPoint(4, group(64)) and dense.weights.shape == (128, 192)
    assert isinstance(bert["bert.embeddings.word_embeddings"], Keep)
    gpt2 = decisions("gpt2", "int8-all-dynamic")
    table, head = gpt2["transformer.wte"], gpt2["lm_head"]
    assert isinstance(table, Quantize) and table.activations == "float"
    assert isinstance(head, TiedTo) and head.source == table and head.activations == "dynamic"
    assert head.parameters == 0 and table.parameters == VOCABULARY * 128


def test_a_weight_is_a_module_and_a_parameter_of_it():
    model = make("bert")
    (name, parameter), *_ = model.named_parameters()
    assert str(WeightName.parse(name)) == name and WeightName.parse(name).of(model) is parameter
    assert WeightName.parse("weight") == WeightName("") and str(WeightName("")) == "weight"
    assert str(WeightName("experts", "gate_up")) == "experts.gate_up"


def test_all_quantizes_embeddings_and_heads():
    for name in ("bert-classifier", "llama-untied", "gpt2", "distilbert"):
        assert all(d.quantized for d in decisions(name, "int8-all").values())


def test_a_shape_that_a_preset_cannot_hold_is_kept_with_the_reason():
    bias = decisions("t5", "int4-all")[
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    ]
    assert not bias.quantized and bias.reason == "group size 64 is larger than the 8 inputs"


def test_a_shape_that_an_own_recipe_cannot_hold_raises_with_the_name():
    recipe = Recipe((Rule("@embedding", ZeroPoint(4, group(64))),))
    with pytest.raises(UsageError, match="relative_attention_bias: group size 64 .* 8 inputs"):
        make_plan(make("t5"), recipe)


def test_subclasses_are_kept_unless_they_only_scale():
    bart = decisions("bart", "int8-all")
    assert bart["model.shared"].quantized
    positions = bart["model.encoder.embed_positions"]
    assert not positions.quantized and "BartLearnedPositionalEmbedding" in positions.reason
    assert not decisions("marian", "int8-all")["model.encoder.embed_positions"].quantized


def test_a_scaled_embedding_that_holds_more_than_its_weight_is_kept():
    """It writes another parameter into the rows of one token."""
    embedding = T5Gemma2TextScaledWordEmbedding(VOCABULARY, 128, 0)
    model = make("bert")
    model.embeddings.word_embeddings = embedding
    kept = {d.name: d for d in make_plan(model, load_recipe("int8-all")).decisions}
    kept = kept["embeddings.word_embeddings"]
    assert not kept.quantized and "holds eoi_embedding beside its weight" in kept.reason


@pytest.mark.parametrize("rounds", [True, False])
def test_a_scale_is_rounded_where_the_float_module_rounds_it(rounds):
    """√1152 is 33.94; in bfloat16, as Gemma has it, 34. BART multiplies by the number itself."""
    kind = Gemma3TextScaledWordEmbedding if rounds else BartScaledWordEmbedding
    module = kind(VOCABULARY, 1152, 0, embed_scale=1152**0.5).to(torch.bfloat16)
    weights = weights_of(module)
    q = Absmax(8).quantize(module.weight.detach())
    packed = packed_like(module, weights, q.layout, "float", module.weight).hold(q)
    module.weight = nn.Parameter(lowbit.dequantize(q, torch.bfloat16))
    ids = torch.arange(VOCABULARY)
    assert torch.equal(packed(ids), module(ids))
    straight = FakeQuantEmbedding(module, weights, nn.Identity(), 0, False)
    assert torch.equal(straight(ids), module(ids))


def test_a_pattern_that_matches_nothing_raises():
    recipe = Recipe((Rule("*.qeury", Absmax(8)), Rule("@linear", Absmax(8))))
    with pytest.raises(UsageError, match=r"'\*.qeury' matches no module"):
        make_plan(make("bert"), recipe)


def test_a_recipe_that_quantizes_nothing_raises():
    with pytest.raises(UsageError, match="quantizes nothing in BertModel"):
        make_plan(make("bert"), Recipe((Rule("@linear", KEEP),)))


def test_a_model_too_narrow_for_the_groups_says_why_nothing_matches():
    narrow = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
        )
    )
    with pytest.raises(UsageError, match="nothing .*"):
        make_plan(narrow, load_recipe("int4"))


def test_a_quantized_model_is_not_quantized_again():
    model = make("bert")
    lowbit.quantize(model, "int8")
    with pytest.raises(lowbit.LowbitError, match="already quantized"):
        lowbit.quantize(model, "int8")


def test_modules_that_share_a_weight_share_its_fate():
    class Rectified(nn.Linear):
        """A subclass that does something else, so not of a kind that can be quantized."""

        def forward(self, x):
            return super().forward(x).relu()

    model = make("gpt2")
    head = Rectified(128, 200, bias=False)
    head.weight = model.transformer.wte.weight
    model.lm_head = head
    decisions = {d.name: d for d in make_plan(model, load_recipe("int8-all")).decisions}
    assert not decisions["transformer.wte"].quantized
    assert "shares its weight with lm_head" in decisions["transformer.wte"].reason


def test_an_embedding_that_renormalizes_is_kept():
    model = make("bert")
    model.embeddings.word_embeddings.max_norm = 1.0
    decisions = {d.name: d for d in make_plan(model, load_recipe("int8-all")).decisions}
    assert "max_norm" in decisions["embeddings.word_embeddings"].reason


def test_bare_parameters_are_named_as_kept():
    model = make("bert")
    model.register_parameter("extra", nn.Parameter(torch.zeros(3, 4)))
    decisions = {d.name: d for d in make_plan(model, load_recipe("int8")).decisions}
    assert decisions[""].parameters == 12 and not decisions[""].quantized
