"""Models with a table in clusters by frequency: stored, loaded, used and accounted as others."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MarianMTModel

import lowbit
from lowbit.conversion.recipe import Recipe, Rule, load_recipe
from lowbit.conversion.skeleton import check_loaded
from lowbit.formats import CHANNEL, StackedTensor, group
from lowbit.inspect.checkpoint import inspect_model
from lowbit.nn import QuantEmbedding
from lowbit.schemes import Binary, Clustered
from tests.models import make, output

TABLE = Clustered(Binary(4, CHANNEL, offset=False, solver="greedy"), ratio=2.0)
LAYERS = Binary(3, group(64), solver="greedy")
RECIPE = Recipe((Rule("@embedding", TABLE), Rule("@linear", LAYERS, "dynamic")), "clustered")
EVERYWHERE = Recipe((Rule("@embedding", TABLE), Rule("@linear", TABLE, "dynamic")))
QUICK, SLOW = ("gpt2", "marian", "llama-untied"), ("llama-tied", "bart", "t5", "distilbert")


def quantized(name, recipe=RECIPE):
    model = make(name)
    return model, lowbit.quantize(model, recipe, progress=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clustered")
    quantized("marian")[0].save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


def table_of(model):
    return model.get_input_embeddings()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_saved_model_is_loaded_bit_for_bit(name, tmp_path):
    model, result = quantized(name)
    expected = output(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(output(loaded), expected)
    stored = table_of(loaded).stored_weight
    assert isinstance(stored, StackedTensor) and [p.bits for p in stored.parts] == [4, 3, 2, 1]
    assert [part.shape[0] for part in stored.parts] == [13, 27, 53, 107]
    assert lowbit.footprint(loaded).stored_bytes == result.after.stored_bytes
    if name not in ("llama-untied", "distilbert"):
        head = loaded.get_output_embeddings()
        assert head.tied_to is not None and head.stored_weight.layout == stored.layout


def test_every_byte_of_a_clustered_table_is_counted():
    model, result = quantized("marian")
    (size,) = [m for m in result.after.modules if m.name == "model.shared"]
    # 128 inputs a row: a bit of each and a float16 scale, plane by plane.
    planes = 13 * 4 + 27 * 3 + 53 * 2 + 107
    assert size.stored_bytes == planes * (128 // 8 + 2) and size.parameters == 200 * 128
    (row,) = [row for row in inspect_model(model).rows if row.size.name == "model.shared"]
    assert row.stored_as == (
        "13 rows binary 4-bit, 27 rows binary 3-bit, 53 rows binary 2-bit,"
        " 107 rows binary 1-bit channel"
    )
    assert row.kernel


def test_streaming_and_quantizing_while_loading_give_the_same(tmp_path):
    model, _ = quantized("marian")
    expected = output(model)
    make("marian").save_pretrained(tmp_path / "float")
    lowbit.quantize_checkpoint(str(tmp_path / "float"), RECIPE, tmp_path / "stored", progress=False)
    streamed = type(model).from_pretrained(tmp_path / "stored")
    config = lowbit.LowbitConfig(RECIPE)
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config)
    for other in (streamed, loaded):
        assert torch.equal(output(other), expected)
        own = other.config.quantization_config.modules
        assert own == model.config.quantization_config.modules


@pytest.mark.parametrize("name", ["marian", "gpt2"])
def test_the_float_model_and_a_copy_have_the_decoded_table(name):
    model, _ = quantized(name)
    twin, weight = copy.deepcopy(model), lowbit.dequantize(table_of(model).stored_weight)
    assert torch.equal(output(twin), output(model))
    model.to(torch.bfloat16)
    assert torch.equal(lowbit.dequantize(table_of(model).stored_weight), weight)
    restored = twin.dequantize()
    assert torch.equal(table_of(restored).weight, weight)
    assert restored.get_output_embeddings().weight is table_of(restored).weight


@pytest.mark.parametrize("rows", [1, 3])
def test_generating_with_recorded_steps_is_generating(rows):
    """Layers that share their input too."""
    model, _ = quantized("llama-tied", EVERYWHERE)
    ids = torch.arange(5 * rows).reshape(rows, 5) + 3
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(lowbit.generate(model, ids, **options), model.generate(ids, **options))


def test_training_that_sees_the_stored_table_ends_in_it():
    recipe = Recipe((Rule("@embedding", TABLE), Rule("@linear", TABLE)))
    model = make("llama-tied")
    lowbit.prepare_qat(model, recipe)
    model.train()
    ids = torch.arange(8)[None] * 20
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    expected = output(model.eval())
    lowbit.finish_qat(model, progress=False)
    assert isinstance(table_of(model).stored_weight, StackedTensor)
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(lowbit.UsageError, match="lsq needs an affine scheme, not clustered"):
        lowbit.prepare_qat(make("llama-tied"), recipe, lowbit.QatOptions(estimator="lsq"))


def test_a_recipe_in_yaml_and_what_is_too_small_for_clusters(tmp_path):
    file = tmp_path / "recipe.yaml"
    rules = "{match: '@embedding', scheme: clustered, bits: 3, clusters: 3, ratio: 2}"
    file.write_text(f"rules:\n  - {rules}\n")
    recipe = load_recipe(file)
    assert recipe.rules[0].scheme == Clustered(Binary(3), 3, 2.0)
    assert load_recipe(recipe.to_dict()) == recipe
    # BERT has two types of tokens.
    sentence = "token_type_embeddings: 2 rows are too few for 3 clusters"
    with pytest.raises(lowbit.UsageError, match=sentence):
        lowbit.quantize(make("bert"), file, progress=False)
    file.write_text(f"strict: false\nrules:\n  - {rules}\n")
    result = lowbit.quantize(make("bert"), file, progress=False)
    kept = {d.name: d.reason for d in result.plan.kept}
    assert kept["embeddings.token_type_embeddings"] == "2 rows are too few for 3 clusters"


def test_any_precision_reaches_every_cluster():
    scheme = Clustered(Binary(3, group(64), solver="greedy", nested=True), 3)
    model, _ = quantized("marian", Recipe((Rule("@embedding", scheme),)))
    whole, table = output(model), table_of(model)
    every = [lowbit.dequantize(table.stored_weight)]
    for planes in (2, 1):
        lowbit.use_planes(model, planes)
        assert f"first {planes} planes" in table.describe()
        own = [Binary(min(planes, bits), group(64), solver="greedy") for bits in (3, 2, 1)]
        rows = lowbit.dequantize(table.weight_in_use).split([67, 66, 67])
        assert [part.bits for part in table.weight_in_use.parts] == [b.bits for b in own]
        # Rarer rows have no planes to lose.
        assert torch.equal(rows[2], every[0][133:]) and not torch.equal(rows[0], every[-1][:67])
        every.append(lowbit.dequantize(table.weight_in_use))
        assert not torch.equal(output(model), whole)
    lowbit.use_planes(model, 3)
    assert torch.equal(output(model), whole)


def test_planes_that_belong_together_are_refused():
    model, _ = quantized("marian", Recipe((Rule("@embedding", TABLE),)))
    with pytest.raises(lowbit.UsageError, match="model.shared is not nested, so 2 of its 4 planes"):
        lowbit.use_planes(model, 2)
    with pytest.raises(lowbit.UsageError, match="between 1 and 4 for this model, not 5"):
        lowbit.use_planes(model, 5)


def test_solvers_take_clusters_or_say_that_they_do_not():
    ids = torch.arange(64).reshape(4, 16)
    recipe = Recipe((Rule("*h.0.mlp.c_fc", TABLE),))
    model = make("gpt2")
    lowbit.quantize(model, recipe, calibration=ids, solver="binary", progress=False)
    stored = model.transformer.h[0].mlp.c_fc.stored_weight
    assert isinstance(stored, StackedTensor) and stored.shape == (512, 128)
    for solver in ("gptq", "hqq", "autoround"):
        given = {} if solver == "hqq" else {"calibration": ids}
        with pytest.raises(lowbit.UsageError, match="scheme clustered has others"):
            lowbit.quantize(make("gpt2"), recipe, solver=solver, progress=False, **given)
    with pytest.raises(lowbit.UsageError, match="1 rows are too few for 4 clusters"):
        lowbit.simulate(make("gpt2"), TABLE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda parts: parts[0].update(rows=-13), "model.shared: part 0 of a stack has -13 rows"),
        (lambda parts: parts[0].update(rows=14), "a stack hold 201 rows, the weight 200"),
        (lambda parts: parts[3].update(rows=10**18), "1000000000000000093 rows, the weight 200"),
        (lambda parts: parts.pop(), "model.shared: the parts of a stack hold 93 rows"),
        (lambda parts: parts.extend(parts * 5), "a stack of 24 parts is outside 1 … 16"),
        (
            lambda parts: parts[1].update(format="stacked", parts=copy.deepcopy(parts)),
            "format 'stacked'",
        ),
    ],
)
def test_a_foreign_map_of_parts_is_one_sentence(change, sentence, folder):
    file = folder / "config.json"
    stored = json.loads(file.read_text())
    change(stored["quantization_config"]["modules"]["model.shared"]["parts"])
    file.write_text(json.dumps(stored))
    with pytest.raises(lowbit.InputError, match=sentence):
        MarianMTModel.from_pretrained(folder)


def test_tensors_of_a_part_that_are_missing_or_foreign_are_named(folder):
    file, name = folder / "model.safetensors", "model.shared.part2_alpha_2"
    tensors = load_file(file)
    part = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match=f"lacks the stored tensor {name}"):
        MarianMTModel.from_pretrained(folder)
    tensors[name] = part.float()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match=f"{name} is torch.float32"):
        MarianMTModel.from_pretrained(folder)


def test_zero_points_of_a_part_are_checked():
    weight = torch.randn(100, 64)
    schemes = [lowbit.ZeroPoint(bits, group(64)) for bits in (4, 2)]
    q = StackedTensor(tuple(map(lambda s, w: s.quantize(w), schemes, weight.split(50))))
    table = QuantEmbedding(q.layout, 100, 64).hold(q)
    for tensor in table.buffers():
        tensor._is_hf_initialized = True
    model = torch.nn.ModuleDict({"table": table})
    check_loaded(model)
    table.part0_zero_point[0, 0] = 4
    check_loaded(model)
    table.part1_zero_point[0, 0] = 4
    with pytest.raises(lowbit.InputError, match="part1_zero_point holds 4, outside .* 0 … 3"):
        check_loaded(model)
