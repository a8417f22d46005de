"""bitsandbytes checkpoints, written with NumPy after its layout; its own are in
test_real_tools.py."""

import json

import numpy as np
import pytest

import lowbit
from lowbit.interop.bitsandbytes import READER
from tests.interop import foreign
from tests.interop.stands_for import assert_holds

LEVELS = np.linspace(-1, 1, 16).astype(np.float32) ** 3  # any table will do
BLOCK, NESTED = 64, 256


def four_bits(folder, nested):
    """Weights in blocks of 64 of the flat weight, which run over the ends of rows."""
    rng = np.random.default_rng(0)

    def tensors_of(weight):
        codes = rng.integers(0, 16, weight.size).astype(np.uint8)
        blocks = -(-weight.size // BLOCK)
        tensors = {"weight": (codes[::2] << 4 | codes[1::2])[:, None]}
        state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32"}
        state["shape"] = list(weight.shape)
        if nested:
            table = rng.normal(0, 0.1, 256).astype(np.float32)
            own = rng.integers(0, 256, blocks).astype(np.uint8)
            scale = rng.uniform(0.1, 0.2, -(-blocks // NESTED)).astype(np.float32)
            largest = table[own] * np.repeat(scale, NESTED)[:blocks] + np.float32(0.5)
            tensors |= {"weight.absmax": own, "weight.nested_quant_map": table}
            tensors["weight.nested_absmax"] = scale
            state |= {"nested_blocksize": NESTED, "nested_offset": 0.5}
        else:
            largest = rng.uniform(0.1, 0.2, blocks).astype(np.float32)
            tensors["weight.absmax"] = largest
        tensors["weight.quant_map"] = LEVELS
        told = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors["weight.quant_state.bitsandbytes__nf4"] = told
        values = LEVELS[codes] * np.repeat(largest, BLOCK)[: weight.size]
        return Stands(values.reshape(weight.shape)), tensors

    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return foreign.write(folder, said, tensors_of)


class Stands:
    def __init__(self, weight):
        self.weight = weight


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_is_refused_by_name_or_decoded_and_quantized_again(nested, tmp_path):
    weights = four_bits(tmp_path / "nf4", nested)
    with pytest.raises(lowbit.InputError, match="NF4 of bitsandbytes.*--requantize RECIPE"):
        lowbit.import_checkpoint(tmp_path / "nf4", tmp_path / "out")
    with READER.open(tmp_path / "nf4", True) as source:
        for name, weight in weights.items():
            found = source.floats[f"{name}.weight"][...].numpy()
            np.testing.assert_array_equal(found, weight, name)
    result = lowbit.import_checkpoint(tmp_path / "nf4", tmp_path / "out", "int4", progress=False)
    assert "14 weights (stored in NF4 of bitsandbytes) were decoded" in result.notes[0]
    assert all(error.signal_to_noise_db > 10 for error in result.errors.values())


def test_int8_is_taken_over(tmp_path):
    rng = np.random.default_rng(1)

    def tensors_of(weight):
        q = rng.integers(-127, 128, weight.shape).astype(np.int8)
        largest = rng.uniform(0.1, 0.2, len(weight)).astype(np.float32)
        own = {"weight": q, "SCB": largest, "weight_format": np.array(0, np.uint8)}
        return Stands(q.astype(np.float32) * (largest / np.float32(127))[:, None]), own

    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    weights = foreign.write(tmp_path / "int8", said, tensors_of)
    lowbit.import_checkpoint(tmp_path / "int8", tmp_path / "out", progress=False)
    assert_holds(tmp_path / "out", weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": [3]}, "is said to have the shape"),
        ({"shape": [10**9, 10**9]}, "bytes for 1000000000000000000 codes"),
        ({"blocksize": 0}, "the blocksize 0"),
    ],
)
def test_a_state_that_lies_is_told(change, told, tmp_path):
    from safetensors.torch import load_file, save_file

    four_bits(tmp_path / "nf4", nested=False)
    file = tmp_path / "nf4" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("__nf4"))
    state = json.loads(bytes(tensors[name].tolist())) | change
    tensors[name] = tensors[name].new_tensor(list(json.dumps(state).encode()))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match=told):
        lowbit.import_checkpoint(tmp_path / "nf4", tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()
