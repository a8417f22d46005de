"""torchao checkpoints in safetensors, as `save_pretrained` writes them: no pickle is read.

    X._weight_qdata       int8 [out, in], codes −2^(bits−1) … 2^(bits−1) − 1
    X._weight_scale       float [out, groups]
    X._weight_zero_point  int8 [out, groups]; may be absent

    w = scale · (qdata − zero_point)

The metadata of the files has, as JSON under "X.weight", the class of tensor, its bits and its
groups. Int8Tensor and IntxUnpackedToInt8Tensor have this form.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import safe_open

from lowbit.checkpoint.documents import reading
from lowbit.errors import InputError
from lowbit.formats import CHANNEL, TENSOR, Granularity, group
from lowbit.interop.compressed_tensors import Group, PlainWeight
from lowbit.interop.foreign_folder import ForeignFolder, Found, Kind, Module, folder_reader

METHOD = "torchao"
MARK = "_weight_qdata"
PARTS = ("_weight_scale", "_weight_zero_point", "_weight_act_pre_scale")
# class of tensor -> its attribute with the bits; None: 8 bits
CLASSES = {"Int8Tensor": None, "IntxUnpackedToInt8Tensor": "target_dtype"}


class Weight(PlainWeight):
    """One weight [out, in]."""

    scale_name, codes_name, zeros_name = "_weight_scale", MARK, "_weight_zero_point"


def find(folder: ForeignFolder) -> Found:
    """The weights of a folder. Raises InputError."""
    modules = folder.modules(MARK, PARTS)
    told = _metadata(folder)
    weights, classes = {}, set()
    for name, module in modules.items():
        kind, described = _described(told, name)
        classes.add(kind)
        if "_weight_act_pre_scale" in module:
            raise InputError(f"{name} scales its inputs (act_pre_scale), which lowbit does not do")
        group = _group(kind, described, module)
        weights[name] = Weight(module, group).foreign(group.activations)
    others = [n for n in told if n.endswith(".weight") and n[:-7] not in modules and _kind(told, n)]
    if others:
        raise InputError(
            f"{others[0]} is a {_kind(told, others[0])}, which lowbit does not hold; it reads"
            f" {' and '.join(CLASSES)}: quantize the float model"
        )
    return Found(weights, modules, f"a torchao checkpoint ({', '.join(sorted(classes))})")


def _metadata(folder: ForeignFolder) -> Mapping[str, str]:
    """The metadata of the files."""
    found: dict[str, str] = {}
    for file in sorted(folder.path.glob("*.safetensors")):
        with reading(file), safe_open(file, framework="pt") as opened:
            found |= opened.metadata() or {}
    return found


def _kind(told: Mapping[str, str], name: str) -> str | None:
    """The class of a tensor that is not plain."""
    try:
        kind = json.loads(told[name])["_type"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return None if kind == "Tensor" else str(kind)


def _described(told: Mapping[str, str], name: str) -> tuple[str, Mapping[str, Any]]:
    """The class of a weight and its attributes. Raises InputError if the class is not supported."""
    kind = _kind(told, f"{name}.weight")
    if kind not in CLASSES:
        raise InputError(
            f"{name}.weight is a {kind}, which lowbit does not hold; it reads"
            f" {' and '.join(CLASSES)}: quantize the float model"
        )
    data = json.loads(told[f"{name}.weight"]).get("_data")
    if not isinstance(data, dict):
        raise InputError(f"the metadata of {name}.weight have no _data")
    return kind, data


def _group(kind: str, described: Mapping[str, Any], module: Module) -> Group:
    """The quantization of one weight. Raises InputError."""
    key = CLASSES[kind]
    try:
        dtype = "int8" if key is None else described[key]["_data"]
        bits = int(dtype.removeprefix("int"))
        rows, columns = (int(n) for n in described["block_size"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the metadata of {module.name}.weight are not complete") from error
    if not 2 <= bits <= 8:
        raise InputError(f"{module.name} has weights of {bits} bits; lowbit holds 2 … 8")
    shifted = "_weight_zero_point" in module
    own = _granularity(rows, columns, module), not shifted, _activations(described)
    return Group(frozenset(), kind, bits, *own)


def _granularity(rows: int, columns: int, module: Module) -> Granularity:
    shape = module.matrix(MARK)
    if (rows, columns) == shape:
        return TENSOR
    if rows != 1 or columns < 2:
        raise InputError(f"{module.name} shares a scale by blocks of {rows} × {columns}")
    return CHANNEL if columns == shape[1] else group(columns)


def _activations(described: Mapping[str, Any]) -> str:
    """The kind "dynamic" for symmetric int8 activations per token; all others become "float"."""
    told = json.dumps(described.get("act_quant_kwargs"))
    return "dynamic" if '"PerRow"' in told and '"SYMMETRIC"' in told else "float"


READER = folder_reader(Kind(lambda told: told.get("quant_method") == METHOD), find)
