"""The bytes of every format, as committed in tests/golden: what they once were they stay."""

import json
from pathlib import Path

import pytest
import torch

from lowbit.formats import FORMATS, layout_from_dict
from lowbit.schemes import scheme_from_dict

GOLDEN = Path(__file__).parents[1] / "golden"
EXAMPLES = [
    pytest.param(example, id=f"{path.stem}-{number}")
    for path in sorted(GOLDEN.glob("*.json"))
    for number, example in enumerate(json.loads(path.read_text()))
]


def tensor(stored):
    """A tensor from its dtype, shape and little-endian bytes."""
    raw = bytearray.fromhex(stored["bytes"])
    return torch.frombuffer(raw, dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])


def test_there_are_examples_of_every_format():
    assert {param.id.split("-")[0] for param in EXAMPLES} == set(FORMATS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_quantizing_gives_the_golden_bytes(example):
    weight = torch.tensor(example["weight"], dtype=torch.float32)
    q = scheme_from_dict(example["scheme"]).quantize(weight)
    assert q.layout.to_dict() == example["layout"]
    stored = {
        name: {
            "dtype": str(t.dtype).removeprefix("torch."),
            "shape": list(t.shape),
            "bytes": t.numpy().tobytes().hex(" "),
        }
        for name, t in q.tensors().items()
    }
    assert stored == example["tensors"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_golden_bytes_decode_to_the_golden_values(example):
    layout = layout_from_dict(example["layout"])
    tensors = {name: tensor(stored) for name, stored in example["tensors"].items()}
    q = layout.assemble(tensors, in_features=len(example["weight"][0]))
    assert FORMATS[layout.format].decode(q).tolist() == example["decoded"]
