"""What cannot be written as ONNX is refused in one sentence, before any work; nothing is left."""

import json

import pytest
from transformers import MixtralForCausalLM, ViTConfig, ViTModel

import lowbit
from lowbit.interop.onnx import outgoing
from tests.cli.conftest import lowbit as command  # noqa: F401  a fixture
from tests.conversion.test_experts import mixtral_config
from tests.folders import save

pytest.importorskip("onnxscript", reason='onnxscript is absent: pip install ".[onnx]"')
pytest.importorskip("transformers.exporters", reason="transformers is older than 5.24")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(recipe) -> a folder that lowbit wrote with it."""
    source = save("bert", tmp_path_factory.mktemp("float"))
    made = {}

    def of(recipe):
        if str(recipe) not in made:
            made[str(recipe)] = folder = tmp_path_factory.mktemp("made") / "ours"
            lowbit.quantize_checkpoint(str(source), recipe, folder, progress=False)
        return made[str(recipe)]

    return of


def groups(size):
    return {
        "rules": [
            {
                "match": "*.query",
                "scheme": "absmax",
                "bits": 4,
                "granularity": f"group:{size}",
            }
        ]
    }


VIT = ViTConfig(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32
)
OFFSETS = {"rules": [{"match": "*.query", "scheme": "zero-point", "zero": "float", "bits": 4}]}


@pytest.mark.parametrize(
    ("recipe", "to", "layout", "told"),
    [
        ("bcq3", "onnx", None, "dense cannot be written as ONNX: .*quantize with int3"),
        ("bcq1", "onnx", None, "quantize with int2"),
        (groups(24), "onnx", None, "group size 24 is not a multiple of 16.*groups of 32"),
        ("int8", "onnx:17", None, "opset '17' is unknown.* 18, 19, 20, 21, 22, 23"),
        ("int8", "onnx:20:vnn", None, "opset 'vnn' is unknown; did you mean vnni"),
        ("int8", "onnx:new", None, "opset 'new' is unknown: use 18"),
        (OFFSETS, "onnx", None, "no operator takes offsets; quantize with int4"),
        ("int8", "onnx", "sentence-transformers", "has no modules.json"),
        ("int8", "onnx", "sentence-transformer", "did you mean sentence-transformers"),
        ("int8", "compressed-tensors", "other", "has one layout: leave 'other' out"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    recipe, to, layout, told, written, tmp_path
):
    with pytest.raises(lowbit.UsageError, match=told) as raised:
        lowbit.export_checkpoint(written(recipe), to, tmp_path / "out", layout=layout)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: MixtralForCausalLM(mixtral_config()), "it holds experts; keep these float"),
        (lambda: ViTModel(VIT), "ViTModel reads no input_ids, as ONNX models here do"),
    ],
    ids=["experts", "pictures"],
)
def test_models_without_a_graph_are_refused(model, told, tmp_path):
    model().save_pretrained(tmp_path / "float")
    lowbit.quantize_checkpoint(tmp_path / "float", "int8", tmp_path / "ours", progress=False)
    with pytest.raises(lowbit.UsageError, match=told):
        lowbit.export_checkpoint(tmp_path / "ours", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_kept(written, tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "trace", None)  # it is not reached
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(lowbit.UsageError, match="exists and is not empty"):
        lowbit.export_checkpoint(written("int8"), "onnx", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_model_that_cannot_be_traced_is_told_and_leaves_nothing(written, tmp_path, monkeypatch):
    def untraceable(graph, opset):
        raise RuntimeError("data-dependent control flow\nand a long story")

    monkeypatch.setattr(outgoing, "trace", untraceable)
    told = "ours cannot be traced for ONNX: data-dependent control flow$"
    with pytest.raises(lowbit.InputError, match=told):
        lowbit.export_checkpoint(written("int8"), "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(written, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(lowbit.InputError, match=r'onnxscript: pip install "\.\[onnx\]"'):
        lowbit.export_checkpoint(written("int8"), "onnx", tmp_path / "out")


@pytest.mark.slow
def test_the_command_says_what_it_wrote(written, command, tmp_path):  # noqa: F811
    out = tmp_path / "onnx"
    code, said, err = command("export", written("int3"), "--to", "onnx:18", "-o", out, "--json")
    told = json.loads(said)
    assert (code, told["to"], told["type"]) == (0, "onnx", "18"), err
    assert told["bytes"] == (out / "model.onnx").stat().st_size
    assert any("13 weights of 3 bits are stored in 4" in note for note in told["notes"])
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
