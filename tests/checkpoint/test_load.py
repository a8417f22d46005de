"""What cannot be loaded whole is one sentence: nothing is made up, and no code is run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit import InputError
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.config import LowbitConfig
from tests.folders import byte_tokenizer
from tests.models import make

WEIGHT = "encoder.layer.0.output.dense.weight"


@pytest.fixture
def source(tmp_path):
    make("bert").save_pretrained(tmp_path)
    return tmp_path


def change(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def replace(folder, weight):
    file = folder / "model.safetensors"
    tensors = load_file(file) | {WEIGHT: weight}
    save_file({n: t for n, t in tensors.items() if t is not None}, file, {"format": "pt"})


def missing(folder):
    replace(folder, None)


def wrong_shape(folder):
    replace(folder, torch.zeros(3, 3))


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def unknown_key(folder):
    change(folder, quantization_config=LowbitConfig("int8").to_dict() | {"colour": "red"})


BROKEN = {
    missing: f"lacks 1 of .*{WEIGHT}",
    wrong_shape: rf"{WEIGHT} has the shape \[3, 3\]",
    truncated: "cannot be loaded",
    unknown_key: "holds colour, which lowbit",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_model_is_one_sentence(damage, source):
    damage(source)
    with pytest.raises(InputError, match=BROKEN[damage]) as raised:
        load_model(source)
    assert "\n" not in str(raised.value)


def test_an_architecture_is_the_name_of_a_model(source):
    change(source, architectures=["set_seed"])
    assert type(load_model(source)) is type(make("bert"))


def test_a_tokenizer_runs_no_code_of_its_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    file.write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    # Whoever asks is told yes.
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
