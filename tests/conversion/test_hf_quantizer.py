"""Saving and loading through transformers: exact, strict, and on the fly."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    NomicBertConfig,
    NomicBertModel,
    Trainer,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

import lowbit
from lowbit.nn import QuantLinear, QuantModule
from tests.combinations import some
from tests.models import MODELS, make, output

RECIPES = ["int8", "int8-zeropoint-all", "int4-all-dynamic", "bcq2-all", "int3"]


def saved(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def edit_tensors(folder: Path, change) -> None:
    """Apply `change` to the dict of tensors of a one-file checkpoint."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, RECIPES))
def test_logits_are_bit_identical_after_loading(name, recipe, tmp_path):
    model = make(name)
    lowbit.quantize(model, recipe)
    expected = output(model)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(output(loaded), expected)
    assert lowbit.footprint(loaded).stored_bytes == lowbit.footprint(model).stored_bytes


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, ["int4-all", "int8-dynamic"]))
def test_quantizing_while_loading_equals_quantizing_in_place(name, recipe, tmp_path):
    model = make(name)
    saved(model, tmp_path / "float")
    config = lowbit.LowbitConfig(recipe)
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config)
    lowbit.quantize(model, recipe)
    assert torch.equal(output(loaded), output(model))
    saved(loaded, tmp_path / "again")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "again")), output(model))


@pytest.mark.parametrize("name", MODELS)
def test_dequantize_gives_a_float_model_with_the_decoded_weights(name, tmp_path):
    model = make(name)
    kinds = {n: type(m) for n, m in model.named_modules()}
    keys = set(model.state_dict())
    lowbit.quantize(model, "int4-all")
    expected = output(model)
    stored = {
        n: lowbit.dequantize(m.stored_weight)
        for n, m in model.named_modules()
        if isinstance(m, QuantModule)
    }
    restored = model.dequantize()
    assert {n: type(m) for n, m in restored.named_modules()} == kinds
    assert set(restored.state_dict()) == keys
    for module, weight in stored.items():
        owner = restored.get_submodule(module)
        assert torch.equal(owner.weight, weight.T if isinstance(owner, Conv1D) else weight)
    torch.testing.assert_close(output(restored), expected, rtol=1e-5, atol=1e-5)
    assert not hasattr(restored.config, "quantization_config")
    saved(restored, tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(restored))


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bart", "t5", "bert-mlm", "marian"])
def test_a_tied_table_is_stored_once_and_tied_again_after_dequantizing(name, tmp_path):
    model = make(name)
    shared = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is shared
    lowbit.quantize(model, "int4-all")
    head = model.get_output_embeddings()
    assert isinstance(head, QuantLinear) and head.tied_to is not None
    saved(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    tables = [n for n, t in stored.items() if n.endswith(".codes") and t.shape[0] == 200]
    assert len(tables) == 1
    restored = type(model).from_pretrained(tmp_path).dequantize()
    assert restored.get_output_embeddings().weight is restored.get_input_embeddings().weight


def test_bert_keeps_the_tie_of_its_decoder_bias(tmp_path):
    model = make("bert-mlm")
    torch.nn.init.normal_(model.cls.predictions.bias)
    lowbit.quantize(model, "int4-all")
    loaded = type(model).from_pretrained(saved(model, tmp_path))
    assert loaded.cls.predictions.decoder.bias is loaded.cls.predictions.bias
    assert torch.equal(output(loaded), output(model))


def test_the_callers_config_stays_as_it_was():
    model = make("gpt2")
    config = model.config
    lowbit.quantize(model, "int8")
    assert not hasattr(config, "quantization_config")
    assert model.config.quantization_config.quant_method == "lowbit"


def test_config_json_says_what_is_stored(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4-all-dynamic")
    stored = json.loads((saved(model, tmp_path) / "config.json").read_text())
    config = stored["quantization_config"]
    assert (config["quant_method"], config["format_version"]) == ("lowbit", 1)
    assert config["producer"] == f"lowbit {lowbit.__version__}"
    assert config["recipe"]["name"] == "int4-all-dynamic"
    assert config["modules"]["transformer.h.0.attn.c_attn"] == {
        "format": "affine",
        "bits": 4,
        "granularity": "group:64",
        "zero_point": True,
        "scale_dtype": "float16",
        "activations": "dynamic",
    }
    assert config["modules"]["lm_head"] == {"tied_to": "transformer.wte", "activations": "dynamic"}
    assert stored["dtype"] == "float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "t5", "bert-classifier"])
def test_loading_in_half_precision_leaves_codes_and_scales_alone(name, dtype, tmp_path):
    model = make(name)
    lowbit.quantize(model, "int4-all")
    loaded = type(model).from_pretrained(saved(model, tmp_path), dtype=dtype)
    cast = copy.deepcopy(model).to(dtype)
    for changed in (loaded, cast):
        modules = dict(model.named_modules())
        for module_name, module in changed.named_modules():
            if isinstance(module, QuantModule):
                for stored in module.saved():
                    own = getattr(modules[module_name], stored)
                    assert torch.equal(getattr(module, stored), own)
                    assert getattr(module, stored).dtype == own.dtype
    relative = (output(loaded).float() - output(model)).norm() / output(model).norm()
    assert relative <= 0.05
    assert loaded.dtype == dtype


@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize(
    ("move", "dtype"),
    [("half", torch.float16), ("bfloat16", torch.bfloat16), ("float", torch.float32)],
)
def test_a_model_is_cast_by_every_method_that_modules_have(move, dtype, loads, tmp_path):
    model = make("bert")
    lowbit.quantize(model, "int8-all")
    if loads:
        model = type(model).from_pretrained(saved(model, tmp_path))
    before = {name: t.clone() for name, t in model.state_dict().items() if "codes" in name}
    other, moved = copy.deepcopy(model), copy.deepcopy(model).to(torch.float16)
    assert getattr(moved, move)() is moved
    assert moved.dtype == dtype and model.dtype == torch.float32
    wanted = output(other.to(torch.float16).to(dtype))
    assert output(moved).dtype == dtype and torch.equal(output(moved), wanted)
    assert all(torch.equal(moved.state_dict()[name], t) for name, t in before.items())
    assert output(moved.dequantize().float()).dtype == torch.float32


def test_t5_keeps_its_float32_layer_in_float16(tmp_path):
    model = make("t5")
    lowbit.quantize(model, "int4")
    loaded = type(model).from_pretrained(saved(model, tmp_path), dtype=torch.float16)
    feed_forward = loaded.encoder.block[0].layer[1].DenseReluDense
    assert feed_forward.wo.weight.dtype == torch.float32
    assert feed_forward.wi.weight.dtype == torch.float16


def test_a_model_with_a_head_opens_as_its_base_model_and_back(tmp_path):
    model = make("bert-classifier")
    lowbit.quantize(model, "int4")
    folder = saved(model, tmp_path / "classifier")
    base = BertModel.from_pretrained(folder)
    assert torch.equal(output(base), output(model.bert))
    assert torch.equal(output(AutoModel.from_pretrained(folder)), output(base))
    headed = BertForSequenceClassification.from_pretrained(saved(base, tmp_path / "base"))
    assert torch.equal(output(headed.bert), output(base))
    # The new head is initialized, not left as it lay in memory.
    assert headed.classifier.weight.abs().max() < 1


def test_generation_with_a_cache_equals_generation_without(tmp_path):
    model = make("llama-tied")
    lowbit.quantize(model, "int4-all")
    loaded = AutoModelForCausalLM.from_pretrained(saved(model, tmp_path))
    ids = torch.tensor([[5, 6, 7, 8]])
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    cached = loaded.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("stored", ["codes", "scale", "zero_point"])
def test_a_missing_stored_tensor_raises_with_its_name(stored, tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4")
    name = f"transformer.h.1.mlp.c_fc.{stored}"
    edit_tensors(saved(model, tmp_path), lambda tensors: tensors.pop(name))
    with pytest.raises(lowbit.InputError, match=name):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_stored_tensor_of_another_dtype_raises_with_its_name(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4")
    name = "transformer.h.1.mlp.c_fc.scale"

    def widen(tensors):
        tensors[name] = tensors[name].float()

    edit_tensors(saved(model, tmp_path), widen)
    with pytest.raises(lowbit.InputError, match=f"{name} is torch.float32"):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_zero_point_that_is_no_code_raises_with_its_name(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4")
    name = "transformer.h.1.mlp.c_fc.zero_point"

    def spoil(tensors):
        tensors[name][3, 0] = 200

    edit_tensors(saved(model, tmp_path), spoil)
    with pytest.raises(lowbit.InputError, match=f"{name} holds 200, outside the codes 0 … 15"):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_stored_tensor_of_another_shape_is_not_loaded(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4")

    def cut(tensors):
        tensors["transformer.h.1.mlp.c_fc.codes"] = tensors["transformer.h.1.mlp.c_fc.codes"][1:]

    edit_tensors(saved(model, tmp_path), cut)
    with pytest.raises(RuntimeError):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    with pytest.raises(lowbit.InputError, match="c_fc.codes"):
        GPT2LMHeadModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(format_version=3), "format version 3"),
        (lambda c: c.update(novel=1, producer="lowbit 9.9"), "novel, which .* lowbit 9.9"),
        (lambda c: c.pop("recipe"), "holds no recipe"),
        (lambda c: c["modules"].update(nothing=dict(c["modules"]["lm_head"])), "nothing"),
        (lambda c: c["modules"]["transformer.wte"].update(format="foreign"), "'foreign'"),
        (lambda c: c["modules"]["transformer.wte"].pop("bits"), "not complete"),
        (lambda c: c["modules"]["transformer.wte"].update(bits=9), "bits 9"),
        (lambda c: c["modules"]["lm_head"].update(tied_to="transformer.h"), "transformer.h"),
        (lambda c: c["modules"]["lm_head"].update(activations="int3"), "'int3'"),
    ],
)
def test_a_foreign_map_raises(change, sentence, tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4-all")
    file = saved(model, tmp_path) / "config.json"
    stored = json.loads(file.read_text())
    change(stored["quantization_config"])
    file.write_text(json.dumps(stored))
    with pytest.raises(lowbit.LowbitError, match=sentence):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_weights_that_are_not_finite_raise_with_their_name_while_loading(tmp_path):
    model = make("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[3, 4] = torch.nan
    saved(model, tmp_path)
    with pytest.raises(lowbit.InputError, match="transformer.h.1.mlp.c_fc.weight: 1 of"):
        GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=lowbit.LowbitConfig("int4"))


def test_dequantizing_gives_weights_in_the_dtype_that_is_computed_in(tmp_path):
    model = make("t5")
    lowbit.quantize(model, "int8-all")
    loaded = type(model).from_pretrained(saved(model, tmp_path), dtype=torch.float16)
    restored = copy.deepcopy(loaded).dequantize()
    kept = restored.encoder.block[0].layer[1].DenseReluDense
    assert (kept.wo.weight.dtype, kept.wi.weight.dtype) == (torch.float32, torch.float16)
    assert {p.dtype for p in loaded.dequantize(torch.bfloat16).parameters()} == {torch.bfloat16}
    assert loaded.config.dtype == torch.bfloat16


def test_saving_before_dequantizing_changes_nothing(tmp_path):
    model = make("gpt2")
    lowbit.quantize(model, "int4")
    expected = output(copy.deepcopy(model).dequantize())
    saved(model, tmp_path)
    assert torch.equal(output(model.dequantize()), expected)


def test_what_another_head_lacks_is_no_longer_listed_when_it_is_saved(tmp_path):
    model = make("llama-untied")
    model.config.pad_token_id = 0
    lowbit.quantize(model, "int4-all")
    classifier = AutoModelForSequenceClassification.from_pretrained(saved(model, tmp_path / "lm"))
    folder = saved(classifier, tmp_path / "classifier")
    listed = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert "lm_head" not in listed["modules"] and "lm_head" not in listed["errors"]
    packed = {name for name, module in model.named_modules() if isinstance(module, QuantModule)}
    assert set(listed["modules"]) == packed - {"lm_head"}
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(output(again), output(classifier))


def test_trainer_predicts_and_trains_what_is_float(tmp_path):
    model = make("bert-classifier")
    lowbit.quantize(model, "int4")
    ids = torch.arange(3, 35).reshape(2, 16)
    data = [{"input_ids": row, "labels": torch.tensor(0)} for row in ids]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, num_train_epochs=1)
    trainer = Trainer(model, arguments, train_dataset=data)
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    assert np.array_equal(trainer.predict(data).predictions, expected)
    stored = {n: t.clone() for n, t in model.state_dict().items() if n.endswith("codes")}
    bias = model.bert.encoder.layer[0].output.dense.bias.clone()
    trainer.train()
    assert stored and all(torch.equal(model.state_dict()[n], t) for n, t in stored.items())
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.bias, bias)


MERGED = NomicBertConfig(
    vocab_size=200, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96
)


@pytest.mark.parametrize("match", ["@linear", "*.q_proj", "*.v_proj"])
def test_weights_that_float_checkpoints_hold_in_one_tensor_are_stored_apart(match, tmp_path):
    torch.manual_seed(0)
    model = NomicBertModel(MERGED).eval()
    saved(model, tmp_path / "float")
    merged = load_file(tmp_path / "float" / "model.safetensors")
    assert not [name for name in merged if "q_proj" in name]
    recipe = lowbit.Recipe((lowbit.Rule(match, lowbit.Absmax(8)),), name="some")
    options = {"quantization_config": lowbit.LowbitConfig(recipe)}
    on_load = NomicBertModel.from_pretrained(tmp_path / "float", **options)
    lowbit.quantize(model, recipe)
    lowbit.quantize_checkpoint(tmp_path / "float", recipe, tmp_path / "streamed")
    expected = output(model)
    assert torch.equal(output(on_load), expected)
    for folder in (saved(model, tmp_path / "in place"), saved(on_load, tmp_path / "on load")):
        assert torch.equal(output(NomicBertModel.from_pretrained(folder)), expected)
    assert torch.equal(output(NomicBertModel.from_pretrained(tmp_path / "streamed")), expected)
    # Float again, it is saved as any float model.
    saved(model.dequantize(), tmp_path / "float again")
    again = load_file(tmp_path / "float again" / "model.safetensors")
    assert again.keys() == merged.keys()
