"""The bytes of every format, as committed in tests/golden: what they once were they stay."""

import json
from pathlib import Path

import pytest
import torch

from lowbit.formats import FORMATS, ExpertsTensor, layout_from_dict
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
    scheme = scheme_from_dict(example["scheme"])
    experts = weight.ndim == 3
    each = map(scheme.quantize, weight)
    q = ExpertsTensor.of(each, len(weight)) if experts else scheme.quantize(weight)
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
    weight, decoded = torch.tensor(example["weight"]), torch.tensor(example["decoded"])
    q = layout.assemble(tensors, in_features=weight.shape[-1])
    assert torch.equal(FORMATS[layout.format].decode(q), decoded.flatten(0, -2))
