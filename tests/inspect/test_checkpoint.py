"""What is told of a model, and that it runs once whatever its kind."""

import pytest
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTModel,
    modeling_utils,
)

import lowbit
from lowbit import InputError
from lowbit.conversion.footprint import ModuleSize
from lowbit.inspect.checkpoint import Inspection, ModuleRow, inspect_model, run_once
from tests.models import SEQ2SEQ, make


def test_every_reason_for_a_kernel_is_told():
    size = ModuleSize("a", "QuantLinear", 1, 1, 4)
    rows = [
        ModuleRow(size, "int8", "reference", why) for why in ("narrow", "narrow", "groups of 8")
    ]
    seen = inspect_model(make("bert"))
    seen = Inspection(tuple(rows), seen.footprint, seen.resident_after_forward, {})
    assert seen.kernels == (("reference", "narrow"), ("reference", "groups of 8"))


def test_an_encoder_decoder_without_dummy_inputs_of_its_own_runs():
    model = M2M100ForConditionalGeneration(M2M100Config(**SEQ2SEQ)).eval()
    calls = []
    model.lm_head.register_forward_hook(lambda module, inputs, out: calls.append(out))
    run_once(model)
    assert len(calls) == 1 and torch.isfinite(calls[0]).all()


def test_running_once_gives_no_advice_on_masks(monkeypatch):
    told = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", told.append)
    model = make("gpt2")
    model.config.pad_token_id = int(model.dummy_inputs["input_ids"][0, 0])
    run_once(model)
    assert not told
    model(**model.dummy_inputs)
    assert len(told) == 1  # the user's own calls are advised as before


def test_a_model_that_reads_no_tokens_is_one_sentence():
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(InputError, match="ViTModel reads pixel_values, not tokens"):
        run_once(ViTModel(ViTConfig(**small, image_size=32)))


def test_a_mixture_reads_the_chosen_experts_of_those_it_stores():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=6,
        num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config).eval()
    whole = sum(p.numel() for p in model.parameters())
    mixture = sum(p.numel() for p in model.model.layers[0].mlp.experts.parameters())
    table = 64 * 32
    lowbit.quantize(model, "int8-all", progress=False)
    seen = inspect_model(model)
    assert seen.parameters_read == whole - mixture * 4 // 6 - table + 32
    assert seen.bytes_read < 0.6 * seen.footprint.stored_bytes
    router, norms = 6 * 32, 3 * 32
    assert seen.quantized_share == pytest.approx(1 - (router + norms) / whole)
