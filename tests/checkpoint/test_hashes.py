"""A hash of every tensor: computed as the page says, and told apart from any other."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import lowbit
from lowbit import InputError
from lowbit.checkpoint.hashes import tensor_hash
from tests.combinations import some
from tests.folders import save
from tests.models import MODELS, make

DTYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I8": np.int8}


def by_hand(dtype, array):
    told = f"{dtype} {list(array.shape)}\n".encode() + array.tobytes()
    return hashlib.sha256(told).hexdigest()[:32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (2, 1, 4)])
def test_a_hash_is_sha_256_of_dtype_shape_and_bytes(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(DTYPES[dtype])
    assert tensor_hash(torch.from_numpy(array)) == by_hand(dtype, array)


def hashes(folder):
    config = json.loads((folder / "config.json").read_text())
    return config["quantization_config"]["hashes"]["tensors"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("hashes")
    save("gpt2", root / "float")
    out = root / "out"
    lowbit.quantize_checkpoint(
        root / "float", "int4-all", out, progress=False, max_shard_bytes=50_000
    )
    return out


def test_every_tensor_of_every_shard_has_its_hash(stored):
    found = {}
    for file in stored.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118
                dtype = opened.get_slice(name).get_dtype()
                found[name] = by_hand(dtype, opened.get_tensor(name))
    assert len(list(stored.glob("*.safetensors"))) > 2
    assert found == hashes(stored)
    assert lowbit.verify(stored) == len(found)


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, ["int8-all", "bcq2"]))
def test_a_model_that_was_saved_verifies(name, recipe, tmp_path):
    model = make(name)
    lowbit.quantize(model, recipe, progress=False)
    model.save_pretrained(tmp_path / "first")
    assert lowbit.verify(tmp_path / "first") == len(hashes(tmp_path / "first"))
    again = type(model).from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    assert lowbit.verify(tmp_path / "again") and hashes(tmp_path / "again") == hashes(
        tmp_path / "first"
    )
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    again.save_pretrained(tmp_path / "trained")
    lowbit.verify(tmp_path / "trained")


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def kept(config):
    return config["quantization_config"]["hashes"]["tensors"]


def copied(stored, folder):
    folder.mkdir()
    for file in stored.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("place", [-1, -1000, -5000])
def test_one_flipped_bit_is_found_and_its_tensor_named(place, stored, tmp_path):
    folder = copied(stored, tmp_path / "model")
    file = max(folder.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    flip(file, place)
    with pytest.raises(InputError, match=rf"{file.name} is damaged: \S+ is not what lowbit wrote"):
        lowbit.verify(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(layer_norm_epsilon=0.5), "something in it was changed"),
        (
            lambda c: kept(c).pop("transformer.ln_f.bias"),
            "holds",
        ),
        (
            lambda c: kept(c).update(b="0"),
            "lacks the tensor b",
        ),
        (lambda c: c["quantization_config"].pop("hashes"), "holds no hashes, because"),
        (lambda c: c.pop("quantization_config"), "holds no hashes, because"),
    ],
)
def test_a_config_that_was_changed_is_told(change, told, stored, tmp_path):
    folder = copied(stored, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told):
        lowbit.verify(folder)


def test_a_folder_without_hashes_loads_as_before(stored, tmp_path):
    folder = copied(stored, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["hashes"]
    (folder / "config.json").write_text(json.dumps(config))
    from transformers import GPT2LMHeadModel

    GPT2LMHeadModel.from_pretrained(folder)


def test_a_module_verifies_before_it_is_filled(tmp_path):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    lowbit.quantize(made, "int8", progress=False)
    lowbit.save(made, tmp_path / "model")
    assert lowbit.verify(tmp_path / "model") == len(hashes(tmp_path / "model"))
    build = [nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2)]
    lowbit.load(build[0], tmp_path / "model", verify=True)
    flip(tmp_path / "model" / "model.safetensors", -1)
    with pytest.raises(InputError, match="is damaged"):
        lowbit.load(build[1], tmp_path / "model", verify=True)
