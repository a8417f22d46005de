"""The table of doors, and what is said at a door that is closed."""

import json

import pytest
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.checkpoint import foreign as refusals
from lowbit.interop.doors import DOORS
from tests.cli.conftest import lowbit as command  # noqa: F401  a fixture
from tests.folders import save
from tests.interop import foreign


def test_what_is_refused_with_the_advice_to_import_has_a_door():
    readable = {name for name, door in DOORS.items() if door.reader is not None}
    assert set(refusals.IMPORTED) - {"auto-round"} <= readable  # which writes GPTQ's and AWQ's


def test_quantize_says_that_it_can_be_imported(tmp_path):
    foreign.gptq(tmp_path / "gptq")
    with pytest.raises(lowbit.InputError, match="already quantized.*`lowbit import`"):
        lowbit.quantize_checkpoint(str(tmp_path / "gptq"), "int4", tmp_path / "out")


def test_a_file_that_can_be_imported_says_so(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(lowbit.InputError, match="`lowbit import` makes one of it"):
        lowbit.quantize_checkpoint(str(file), "int4", tmp_path / "out")


def test_a_float_model_is_no_import(tmp_path):
    save("gpt2", tmp_path / "float")
    with pytest.raises(lowbit.InputError, match="has no format that lowbit imports: .*gptq, awq"):
        lowbit.import_checkpoint(tmp_path / "float", tmp_path / "out")
    with pytest.raises(lowbit.InputError, match="no file or folder"):
        lowbit.import_checkpoint(tmp_path / "nothing", tmp_path / "out")


def test_the_command_line_imports_exports_and_dequantizes(command, tmp_path):  # noqa: F811
    foreign.awq(tmp_path / "awq")
    code, out, err = command("import", tmp_path / "awq", "-o", tmp_path / "ours")
    assert (code, "14 weights were kept from an AWQ checkpoint" in out) == (0, True), err
    code, out, err = command(
        "export", tmp_path / "ours", "--to", "compressed-tensors", "-o", tmp_path / "ct", "--json"
    )
    told = json.loads(out)
    assert (code, told["to"], told["weights"]) == (0, "compressed-tensors", 14), err
    code, out, err = command("dequantize", tmp_path / "ours", "-o", tmp_path / "float", "-q")
    assert (code, out) == (0, ""), err
    code, out, err = command("import", tmp_path / "ct", "-o", tmp_path / "again", "--json")
    assert json.loads(out)["recipe"]["name"] == "compressed-tensors", err
    code, out, err = command("export", tmp_path / "ours", "--to", "x", "-o", tmp_path / "x")
    assert (code, "there is no format 'x'" in err) == (2, True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"qweight": None}, "no quantized weight|lacks"),
        ({"scales": None}, "lacks model.layers.0.mlp.up_proj.scales"),
        ({"scales": lambda t: t[:, :-1]}, "scales has the shape"),
        ({"scales": lambda t: t * float("nan")}, "scale holds nan"),
        ({"qzeros": lambda t: t[:1]}, "qzeros has the shape"),
        ({"g_idx": lambda t: t + 9}, "g_idx names groups 9"),
        ({"qweight": lambda t: t[:-1]}, "which does not match codes of"),
        ({"qweight": lambda t: t.float()}, "qweight is torch.float32, not int32"),
        ({"qweight": lambda t: t[:, :-1]}, "has the shape"),
    ],
)
def test_tensors_that_do_not_go_together_are_told_and_nothing_is_written(damage, told, tmp_path):
    foreign.gptq(tmp_path / "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = load_file(file)
    for own, change in damage.items():
        name = f"model.layers.0.mlp.up_proj.{own}"
        tensor = tensors.pop(name)
        if change is not None:
            tensors[name] = change(tensor).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match=told) as raised:
        lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["gptq"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    from lowbit.checkpoint.shards import ShardWriter

    save("llama-untied", tmp_path / "float")
    lowbit.quantize_checkpoint(str(tmp_path / "float"), "int8", tmp_path / "ours", progress=False)

    def full(self):
        raise OSError(28, "No space left on device", str(self.folder))

    monkeypatch.setattr(ShardWriter, "close", full)
    with pytest.raises(lowbit.InputError, match="No space left"):
        lowbit.export_checkpoint(tmp_path / "ours", "compressed-tensors", tmp_path / "theirs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float", "ours"]
