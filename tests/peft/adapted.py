"""Models with random adapters, for the tests of this folder."""

import copy

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

import lowbit
import lowbit.peft  # noqa: F401  # registers
from tests.models import VOCABULARY, make

IDS = torch.arange(3, 35).reshape(2, 16) * 5 % VOCABULARY


def randomized(model, seed=0):
    """As trained: PEFT starts with B of zeros, which changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def quantized(name, recipe="int4"):
    model = make(name)
    lowbit.quantize(model, recipe, progress=False)
    return model


def config(**options):
    return LoraConfig(r=4, lora_alpha=8, **{"target_modules": "all-linear"} | options)


def adapted(name, recipe="int4", **options):
    return randomized(get_peft_model(quantized(name, recipe), config(**options)))


def with_twin(name, recipe="int4", **options):
    """An adapted quantized model, and the float one of the same weights with the same adapter,
    which knows nothing of lowbit."""
    model = quantized(name, recipe)
    twin = get_peft_model(copy.deepcopy(model).dequantize(), config(**options))
    model = randomized(get_peft_model(model, config(**options)))
    set_peft_model_state_dict(twin, get_peft_model_state_dict(model))
    return model.eval(), twin.eval()


def inputs(model):
    """Two sequences; an encoder–decoder reads them on both sides."""
    both = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return {"input_ids": IDS} | both


def near(found, wanted, bound=1e-4):
    """Whether found is wanted, relative to the largest number of it; NaN is not."""
    return bool(((found - wanted).abs() <= bound * wanted.abs().max()).all())
