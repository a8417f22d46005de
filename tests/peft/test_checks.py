"""What cannot be trained on a quantized base is told before the model changes."""

import pytest
import torch

pytest.importorskip("peft", reason="the package peft is absent")

from peft import get_peft_model

import lowbit
from lowbit.peft import load
from tests.models import make
from tests.peft.adapted import IDS, adapted, config, quantized


def static(model):
    lowbit.quantize(model, "int8-static", False, IDS)
    return model


@pytest.mark.parametrize(
    ("name", "recipe", "options", "sentence"),
    [
        ("gpt2", "int4", {"init_lora_weights": "pissa"}, "'pissa' changes the weights of the base"),
        ("gpt2", "int4", {"init_lora_weights": "olora"}, "use True, False, 'gaussian'"),
        ("gpt2", "int4-all", {"modules_to_save": ["lm_head"]}, "lm_head is quantized"),
        ("gpt2", "int4-all", {"trainable_token_indices": [1]}, "transformer.wte is quantized"),
        ("bert-classifier", "int4-all", {"task_type": "SEQ_CLS"}, "classifier is quantized"),
    ],
)
def test_what_would_change_the_base_is_refused(name, recipe, options, sentence):
    model = quantized(name, recipe)
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(lowbit.UsageError, match=sentence):
        get_peft_model(model, config(**options))
    assert [name for name, _ in model.named_modules()] == modules


def test_what_is_float_is_trained_whole():
    model = quantized("bert-classifier", "int4")
    model = get_peft_model(model, config(task_type="SEQ_CLS"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("classifier.modules_to_save" in name for name in trained)


def test_static_activations_take_adapters_but_train_none(tmp_path):
    adapted("gpt2", "int8").save_pretrained(tmp_path)
    with pytest.raises(lowbit.UsageError, match="static activations, whose scale was"):
        get_peft_model(static(make("gpt2")), config())
    model = load(static(make("gpt2")), tmp_path)
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=IDS)[0]
    assert not torch.equal(model(input_ids=IDS)[0], plain)
