"""Export a lowbit folder as a compressed-tensors checkpoint, for transformers and vLLM.

Codes and scales do not change (compressed_tensors.py describes the layout). Weights of linear
layers are written as pack-quantized, or as int-quantized if activations are int8. Embeddings and
heads are decoded, because servers read them as floats.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from lowbit.conversion.module_weights import as_stored
from lowbit.errors import UsageError
from lowbit.formats import AffineLayout, AffineTensor, decode
from lowbit.formats.packing import pack
from lowbit.interop.compressed_tensors import METHOD, PACKED
from lowbit.interop.door import Writer
from lowbit.interop.stored_model import StoredModel, StoredWeight
from lowbit.nn import STATIC
from lowbit.progress import tracked

BITS = (4, 8)  # bits with kernels in vLLM
INT8 = "int-quantized"


@dataclass(frozen=True)
class Scheme:
    """The quantization of a weight: one entry of `config_groups`. group: inputs that share a scale;
    None for whole rows."""

    bits: int
    group: int | None
    symmetric: bool
    int8_activations: bool

    @classmethod
    def of(cls, weight: StoredWeight) -> "Scheme":
        layout = weight.layout
        assert isinstance(layout, AffineLayout)
        size = layout.granularity.group_size
        symmetric = not layout.zero_point
        integer = weight.activations == "dynamic" and layout.signed and size is None
        return cls(layout.bits, size, symmetric, integer)

    @property
    def format(self) -> str:
        return INT8 if self.int8_activations else PACKED

    def to_dict(self, targets: Iterable[str]) -> dict[str, Any]:
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"}
        return {
            "targets": list(targets),
            "weights": {
                "num_bits": self.bits,
                "type": "int",
                "symmetric": self.symmetric,
                "strategy": "channel" if self.group is None else "group",
                "group_size": self.group,
                "dynamic": False,
            },
            "input_activations": inputs | {"dynamic": True} if self.int8_activations else None,
            "output_activations": None,
            "format": self.format,
        }


def check(model: StoredModel, type: str | None) -> None:
    """Raises UsageError if the format or vLLM does not support the model. It names the nearest
    recipe."""
    if type is not None:
        raise UsageError(f"{METHOD} has no types, such as {type!r}: leave it out")
    for place, weight in model.weights.items():
        if told := _misfit(weight):
            raise UsageError(f"{place} cannot be written as {METHOD}: {told}")
    if not any(_is_quantized(model, place) for place in model.owners):
        raise UsageError(f"{model.folder} has no linear layer that {METHOD} would hold quantized")


def write(model: StoredModel, type: str | None, folder: Path, progress: bool) -> tuple[str, ...]:
    """Write the folder. Returns sentences about differences."""
    writer = ShardWriter(folder, MAX_SHARD_BYTES)
    schemes: dict[str, Scheme] = {}
    for place, weight in tracked(model.owners.items(), "exporting", "weight", progress):
        q = weight.read()
        if _is_quantized(model, place):
            assert isinstance(q, AffineTensor)
            schemes[place] = scheme = Scheme.of(weight)
            tensors = _int8(q) if scheme.int8_activations else _packed(q)
            if model.dtype == torch.float32:
                # Programs decode in the dtype of the scales.
                tensors["weight_scale"] = tensors["weight_scale"].float()
            for own, tensor in tensors.items():
                writer.add(f"{place}.{own}", tensor)
        else:
            writer.add(str(weight.name), as_stored(decode(q, weight.dtype), weight.weights))
    for name, tensor in model.floats.items():
        writer.add(name, tensor[...])
    writer.close()
    model.config.dtype = model.dtype
    with reading(model.folder / "config.json"):
        described = json.loads(model.config.to_json_string())
    described["architectures"] = [model.model.__class__.__name__]
    described["quantization_config"] = _described(model, schemes)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    copy_companions(model.folder, folder)
    return tuple(_notes(model, schemes))


WRITER = Writer(check, write)


def _is_quantized(model: StoredModel, place: str) -> bool:
    """Whether a weight stays quantized: it belongs to a linear layer that is not a head."""
    return isinstance(model.model.get_submodule(place), nn.Linear) and place not in _heads(model)


def _heads(model: StoredModel) -> set[str]:
    output = model.model.get_output_embeddings()
    return {name for name, module in model.model.named_modules() if module is output}


def _misfit(weight: StoredWeight) -> str | None:
    """Why a weight cannot be written, and what to do; None if it can."""
    layout, name = weight.layout, weight.weights
    if weight.activations in STATIC:
        return "its activations are static; quantize with int8-dynamic"
    if name.kind == "experts":
        return 'it holds experts; keep these float ({match: "@experts", keep: true})'
    if name.kind == "embedding":
        return None
    if name.transposed:
        return "it is a Conv1D, which these programs do not quantize"
    if not isinstance(layout, AffineLayout):
        return f"it is stored as {layout}; quantize with int4"
    if layout.offset or layout.two_level is not None:
        return f"it is stored as {layout}, whose scales this format cannot hold; quantize with int4"
    if layout.bits not in BITS:
        nearest = min(bits for bits in BITS if bits >= layout.bits)
        known = " or ".join(map(str, BITS))
        return f"vLLM serves {known} bits, not {layout.bits}; quantize with int{nearest}"
    size = layout.granularity.group_size
    if size is not None and name.shape[1] % size:
        return f"its {name.shape[1]} inputs are not a multiple of {size}; quantize with int8"
    return None


def _packed(q: AffineTensor) -> dict[str, Tensor]:
    """The tensors in the format pack-quantized."""
    assert isinstance(q.scale, Tensor)
    rows, columns = q.shape
    codes = (q.codes.view(torch.uint8) ^ 0x80) if q.layout.signed else q.codes
    tensors = {
        "weight_packed": _in_words(codes, columns * q.bits),
        "weight_scale": _by_row(q.scale, rows),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if q.zero_point is not None:
        down = pack(_by_row(q.zero_point, rows).t().contiguous(), q.bits)
        tensors["weight_zero_point"] = _in_words(down, rows * q.bits).t().contiguous()
    return tensors


def _in_words(packed: Tensor, bits: int) -> Tensor:
    """Rows of packed bytes as int32 [n, words]; the last word is padded with zeros."""
    missing = -(-bits // 32) * 4 - packed.shape[1]
    return pad(packed, (0, missing)).flatten().view(torch.int32).unflatten(0, (len(packed), -1))


def _int8(q: AffineTensor) -> dict[str, Tensor]:
    """The tensors in the format int-quantized."""
    assert isinstance(q.scale, Tensor)
    return {"weight": q.codes, "weight_scale": _by_row(q.scale, q.shape[0])}


def _by_row(parameter: Tensor, rows: int) -> Tensor:
    """A parameter as [out, groups]; a scale per tensor is repeated."""
    return parameter.expand(rows, -1).contiguous()


def _described(model: StoredModel, schemes: dict[str, Scheme]) -> dict[str, Any]:
    """`quantization_config`: the most common scheme for all linear layers, the others by name."""
    ((common, _),) = Counter(schemes.values()).most_common(1)
    places: dict[Scheme, list[str]] = {common: ["Linear"]}
    for place, scheme in schemes.items():
        if scheme != common:
            places.setdefault(scheme, []).append(place)
    formats = {scheme.format for scheme in places}
    linear = [n for n, m in model.model.named_modules() if isinstance(m, nn.Linear)]
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": scheme.to_dict(targets)
            for i, (scheme, targets) in enumerate(places.items())
        },
        "ignore": [name for name in linear if name not in schemes],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _notes(model: StoredModel, schemes: dict[str, Scheme]) -> Iterable[str]:
    """Sentences about the differences from the lowbit folder."""
    decoded = [place for place in model.owners if place not in schemes]
    if decoded:
        yield f"{', '.join(decoded)}: written as floats, as embeddings and heads are served."
    if any(not scheme.symmetric for scheme in schemes.values()):
        yield (
            "The weights have zero points: vLLM reads them as they are, transformers with"
            " quantization_config=CompressedTensorsConfig(dequantize=True)."
        )
    floats = [
        place
        for place, scheme in schemes.items()
        if model.weights[place].activations == "dynamic" and not scheme.int8_activations
    ]
    if floats:
        yield (
            f"{len(floats)} layers have int8 activations here and float ones there, which"
            f" {METHOD} pairs with such weights."
        )
