"""Accounting: every byte once, and none forgotten."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit.conversion.footprint import resident_bytes
from lowbit.formats import CHANNEL, group
from tests.combinations import some
from tests.models import MODELS, make, output


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, ["int8", "int4-all", "bcq3-all-dynamic"]))
def test_stored_bytes_are_the_bytes_of_the_tensors_on_disk(name, recipe, tmp_path):
    model = make(name)
    lowbit.quantize(model, recipe)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors").values()
    (tmp_path / "qat.safetensors").write_bytes(bytes(1000))  # is not of the model
    size = lowbit.footprint(model, tmp_path)
    # Marian's sinusoids are parameters that transformers computes anew and never saves.
    unsaved = sum(model.get_parameter(key).nbytes for key in model._keys_to_ignore_on_save)
    assert size.stored_bytes == sum(t.nbytes for t in tensors) + unsaved
    assert size.disk_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert 0 < size.disk_bytes + unsaved - size.stored_bytes < 64_000


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, ["int8-dynamic", "int4-all", "bcq2"]))
def test_resident_bytes_are_the_memory_footprint_and_grow_with_use_by_padding_only(name, recipe):
    model = make(name)
    lowbit.quantize(model, recipe)
    size = lowbit.footprint(model)
    assert size.resident_bytes == model.get_memory_footprint()
    output(model)
    # 16 rows share a vector: the few hundred words of these vocabularies are padded to that.
    assert size.resident_bytes <= resident_bytes(model) <= 1.1 * size.resident_bytes


def test_bits_per_weight_count_codes_scales_and_zero_points():
    """By hand: 4 bits, and 16 for the scale and 8 for the zero point of each group of 64."""
    model = make("llama-untied")
    lowbit.quantize(model, "int4")
    module = next(
        m for m in lowbit.footprint(model).modules if m.name == "model.layers.0.mlp.up_proj"
    )
    assert module.bits_per_weight == 4 + (16 + 8) / 64
    assert module.parameters == 128 * 192
    assert module.float_bytes == 4 * 128 * 192


def test_the_float_size_is_that_of_the_float_model():
    for name in MODELS:
        model = make(name)
        before = lowbit.footprint(model)
        persistent = {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()
        assert before.parameters == sum(t.numel() for t in persistent)
        lowbit.quantize(model, "int4-all")
        after = lowbit.footprint(model)
        assert after.float_bytes == before.float_bytes == before.stored_bytes
        assert after.parameters == before.parameters


def test_a_cached_float_copy_would_be_seen():
    model = make("bert")
    lowbit.quantize(model, "int8")
    before = resident_bytes(model)
    model.encoder.layer[0].output.dense.cache = {"weight": torch.zeros(1000)}
    assert resident_bytes(model) == before + 4000


def test_views_of_one_storage_count_once():
    module = torch.nn.Module()
    whole = torch.zeros(100)
    module.register_buffer("a", whole[:50])
    module.register_buffer("b", whole[50:])
    assert resident_bytes(module) == 400


def bert_base():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig()).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "mebibytes"),
    [
        pytest.param(
            lowbit.Recipe(
                (
                    lowbit.Rule("@embedding", lowbit.KEEP),
                    lowbit.Rule("@linear", lowbit.Absmax(4, CHANNEL)),
                )
            ),
            132.5,
            marks=pytest.mark.nightly,
        ),
        pytest.param("int4", 137.0, marks=pytest.mark.nightly),
        ("int4-all", 60.0),
    ],
    ids=["4-bit per row", "int4", "int4-all"],
)
def test_bert_base_in_four_bits_takes_no_more_than_this(recipe, mebibytes, tmp_path):
    model = bert_base()
    before = lowbit.footprint(model)
    assert before.parameters == 109_482_240
    assert round(before.stored_bytes / 2**20, 2) == 417.64
    result = lowbit.quantize(model, recipe)
    model.save_pretrained(tmp_path)
    after = lowbit.footprint(model, tmp_path)
    linear = [d for d in result.plan.quantized if d.module == "Linear"]
    assert sum(d.parameters for d in linear) == 85_524_480
    assert after.disk_bytes / 2**20 <= mebibytes
    assert after.resident_bytes / 2**20 <= mebibytes
    assert after.disk_bytes == sum(f.stat().st_size for f in Path(tmp_path).glob("*.safetensors"))


def test_group_scales_are_counted_with_a_short_last_group():
    q = lowbit.Absmax(3, group(50)).quantize(torch.randn(7, 120))
    assert sum(t.nbytes for t in q.tensors().values()) == 7 * (45 + 3 * 2)
