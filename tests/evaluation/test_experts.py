"""How often experts are chosen, against counting what the router says."""

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import lowbit
from lowbit.evaluation.evaluate import EvaluationPlan, examine
from lowbit.evaluation.experts import chosen_experts
from lowbit.evaluation.study import Measurement, Study
from lowbit.evaluation.task import Subject
from lowbit.report.page import render_html
from lowbit.report.pictures.experts import chosen, over_chance

IDS = torch.tensor([[5, 17, 80, 3, 9, 44], [7, 7, 2, 90, 31, 1]])


def model():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=5,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("recipe", [None, "int8"])
def test_counts_are_those_of_the_router(recipe):
    mixture = model()
    if recipe is not None:
        lowbit.quantize(mixture, recipe, progress=False)
    with torch.no_grad():
        routed = mixture(IDS, output_router_logits=True).router_logits
    found = chosen_experts(mixture, [{"input_ids": IDS[:1]}, {"input_ids": IDS[1:]}])
    assert list(found) == [f"model.layers.{i}.mlp.experts" for i in range(2)]
    for counts, probabilities in zip(found.values(), routed, strict=True):
        best = probabilities.topk(2).indices.flatten()
        assert counts == tuple(torch.bincount(best, minlength=5).tolist())
    assert not any(m._forward_pre_hooks for m in mixture.modules())


def longcat():
    torch.manual_seed(0)
    config = LongcatFlashConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_hidden_size=32,
        expert_ffn_hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        head_dim=16,
        v_head_dim=16,
        n_routed_experts=3,
        zero_expert_num=2,
        moe_topk=2,
    )
    return LongcatFlashForCausalLM(config).eval()


@pytest.mark.parametrize("recipe", [None, "int8"])
def test_experts_that_do_not_describe_themselves_are_counted_by_the_numbers_they_are_given(recipe):
    mixture = longcat()
    if recipe is not None:
        lowbit.quantize(mixture, recipe, progress=False)
    said = {}
    for name, module in mixture.named_modules():
        if name.endswith(".router"):
            hear = lambda _, args, got, name=name: said.update({name: got[-1]})  # noqa: E731
            module.register_forward_hook(hear)
    found = chosen_experts(mixture, [{"input_ids": IDS}])
    assert found and len(found) == len(said)
    for counts, ids in zip(found.values(), said.values(), strict=True):
        assert sum(counts) == 2 * IDS.numel()
        assert counts == tuple(torch.bincount(ids.flatten(), minlength=5).tolist())


def test_experts_whose_tokens_come_sorted_are_told():
    config = Llama4TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=3,
    )
    with pytest.raises(lowbit.UsageError, match="no experts that are called with the numbers"):
        chosen_experts(Llama4ForCausalLM(config).eval(), [{"input_ids": IDS}])


def test_a_study_has_the_choices_of_its_tasks_and_the_page_draws_them():
    class Reads:
        def check(self, subject): ...

        def measure(self, subject, progress):
            with torch.no_grad():
                subject.model(IDS)
            return Measurement("reading", "two lines", 2, "lines", {}, {})

    mixture = model()
    wanted = chosen_experts(mixture, [{"input_ids": IDS}])
    subject = Subject("a mixture", mixture, None)
    study = Study((examine(subject, None, EvaluationPlan((Reads(),), pictures=True)),), {}, 0)
    assert study.models[0].experts == wanted
    again = Study.from_dict(json.loads(json.dumps(study.to_dict())))
    assert again.models[0].experts == wanted
    assert 'id="experts"' in render_html(study)
    without = replace(study, models=(replace(study.models[0], experts={}),))
    assert 'id="experts"' not in render_html(without)


def test_a_model_without_experts_is_told():
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(lowbit.UsageError, match="no experts"):
        chosen_experts(llama, [])


def test_a_picture_has_a_cell_for_each_expert_and_says_what_it_shows():
    counts = {"layers.0": (4, 0, 2, 2), "layers.1": tuple([1] * 70)}
    svg = chosen("experts", "a mixture", counts)
    corners = re.findall("M[0-9.]+ [0-9.]+h", svg)
    assert len(corners) >= 74 and "layers.*" in svg
    assert "74 experts in 2 layers; 1 were never chosen" in svg
    assert over_chance(4, (4, 0, 2, 2)) == 2 and over_chance(0, (0, 0)) == 0
