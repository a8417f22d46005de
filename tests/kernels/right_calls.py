"""Calls of every registered operator that are right, and what of them may differ and stay right.

An operator without an entry fails test_wrong_calls.py: whoever adds one adds a right call here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lowbit.formats import CHANNEL, TENSOR, ExpertsTensor, group
from lowbit.kernels import native, ops
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from lowbit.schemes import Absmax, Binary, Clustered, Scheme, ZeroPoint

ROWS, COLUMNS = 48, 64
SCHEMES: tuple[Scheme, ...] = (
    Absmax(8, CHANNEL),
    Absmax(8, TENSOR),
    ZeroPoint(4, group(32)),
    Binary(3, CHANNEL, nested=True),
    Clustered(Binary(4, CHANNEL), ratio=2.0),
)
# What may be otherwise with a float input of rows, and with row numbers.
FLOATS = frozenset({"float dtype", "numbers", "rows", "rank"})
IDS = frozenset({"integer dtype", "rows", "columns", "rank", "shape", "flat", "scalar", "one"})
VECTOR = frozenset({"float dtype", "numbers", "none"})


@dataclass(frozen=True)
class RightCall:
    """free: argument -> kinds of change (wrong_calls.py) after which the call may be right. values:
    argument -> other values that are right."""

    operator: str
    arguments: dict[str, Any]
    free: dict[str, frozenset[str]] = field(default_factory=dict)
    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)


def right_calls() -> Iterator[RightCall]:
    torch.manual_seed(0)
    for scheme in SCHEMES:
        yield from _of_a_weight(scheme)
    for plain in (ZeroPoint(4, group(32)), Binary(3, CHANNEL, nested=True)):
        yield from _of_experts(plain)
    yield RightCall(
        "quantize_rows",
        {"x": torch.randn(5, COLUMNS), "group_size": 16},
        {
            "x": frozenset({"float dtype", "numbers", "rows", "columns", "shape", "one", "device"}),
            "group_size": frozenset({"at least 1"}),
        },
    )
    for targets in ("attention_float32", "attention_bfloat16") if native.available() else ():
        runnable = [p.name for p in native.targets(targets) if not native.lacks(p.feature)]
        if runnable:
            yield from _attention(runnable)


def _of_a_weight(scheme: Scheme) -> Iterator[RightCall]:
    q = scheme.quantize(torch.randn(ROWS, COLUMNS))
    stored, layout = list(q.tensors().values()), ops.layout_text(q.layout)
    x, bias, ids = torch.randn(5, COLUMNS), torch.randn(ROWS), torch.tensor([0, ROWS - 1, 7])
    numbers = {"stored": frozenset({"numbers"}), "packed": frozenset({"numbers"})}
    if scheme.granularity == TENSOR:  # whose codes may be of any number of rows
        numbers["stored"] |= {"rows"}
    dtypes = {"dtype": (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    weight = {"stored": stored, "layout": layout, "in_features": COLUMNS}
    yield RightCall("dequantize", {**weight, "dtype": torch.float32}, numbers, dtypes)
    yield RightCall(
        "embedding", {"ids": ids, **weight, "dtype": torch.float32}, {**numbers, "ids": IDS}, dtypes
    )
    free = {**numbers, "x": FLOATS, "bias": VECTOR}
    values = {
        "activations": ("float", "dynamic"),
        "nonlinearity": ("identity", "gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
        "input_scale": (0.5,),
        "input_zero_point": tuple(range(-128, 128)),
    }
    for activations, scale in (("float", 0.0), ("dynamic", 0.0), ("static", 0.02)):
        how = {"activations": activations, "nonlinearity": "gelu"}
        static = {"input_scale": scale, "input_zero_point": 3 if scale else 0}
        own = values if not scale else {**values, "activations": ("static",)}
        if not scale:
            own = {k: v for k, v in own.items() if not k.startswith("input")}
        yield RightCall(
            "linear", {"x": x, "stored": stored, "bias": bias, "layout": layout, **how, **static},
            free, own,
        )  # fmt: skip
        if not native.available():
            continue
        packed = packed_layout_of(q.layout, ROWS, COLUMNS).pack(q)
        place = {"layout": layout, "out_features": ROWS, "planes": 0}
        target = {"target": native.BASE}
        runnable = tuple(p.name for p in native.targets("linear") if not native.lacks(p.feature))
        yield RightCall(
            "linear_packed", {"x": x, "packed": packed, "bias": bias, **place, **how, **target,
                              **static},
            free, {**own, "planes": (0, *q.layout.prefixes), "target": runnable},
        )  # fmt: skip
        if activations == "float":
            yield RightCall(
                "embedding_packed",
                {"ids": ids, "packed": packed, "layout": layout, "num_embeddings": ROWS,
                 "in_features": COLUMNS, "planes": 0, "dtype": torch.float32},
                {**numbers, "ids": IDS}, {**dtypes, "planes": (0, *q.layout.prefixes)},
            )  # fmt: skip


def _attention(targets: list[str]) -> Iterator[RightCall]:
    """Four heads, two of keys; 5 queries, 7 keys."""
    query, key, value = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 7, 16), torch.randn(2, 2, 7, 8)
    free = {name: frozenset({"numbers"}) for name in ("query", "key", "value")}
    free["value"] |= {"columns"}
    free["mask"] = frozenset({"numbers", "none", "one", "float dtype", "dtype", "rows"})
    free["scale"] = frozenset({"finite"})
    masks: tuple[Tensor | None, ...] = (
        None,
        torch.ones(2, 1, 5, 7, dtype=torch.bool),
        torch.zeros(1, 4, 1, 7),
    )
    more: tuple[dict[str, Any], ...] = ({"cap": None, "sinks": None},)
    if targets[0] in [p.name for p in native.targets("attention_float32")]:
        more += ({"cap": 5.0, "sinks": torch.randn(4)},)
        free |= {"cap": frozenset({"finite"}), "sinks": frozenset({"numbers", "none"})}
    for mask, beyond in product(masks, more):
        call = {"query": query, "key": key, "value": value, "mask": mask, "scale": 0.25}
        yield RightCall(
            "attention", {**call, "causal": False, "target": targets[0], **beyond}, free,
            {"causal": (True, False), "target": tuple(targets)},
        )  # fmt: skip


def _of_experts(scheme: Scheme) -> Iterator[RightCall]:
    """Three experts of 16 rows, two chosen for each of 5 tokens; id 3 chooses none."""
    q = ExpertsTensor.of([scheme.quantize(torch.randn(16, COLUMNS)) for _ in range(3)], 3)
    stored, layout = list(q.tensors().values()), ops.layout_text(q.layout)
    choice = torch.tensor([[0, 1], [2, 2], [3, 0], [1, 3], [3, 3]])
    x, bias, grad = torch.randn(5, COLUMNS), torch.randn(3, 16), torch.randn(5, 2, 16)
    numbers = frozenset({"numbers"})
    floats = frozenset({"float dtype", "numbers"})
    free = {"x": floats, "grad": floats, "bias": floats | {"none"}}
    free |= {"ids": frozenset({"columns", "shape"}), "stored": numbers, "packed": numbers}
    how = {"activations": ("float", "dynamic")}
    call = {"x": x, "ids": choice}
    for activations in how["activations"]:
        own = {"bias": bias, "layout": layout, "activations": activations}
        yield RightCall("experts_linear", {**call, "stored": stored, **own}, free, how)
    yield RightCall(
        "experts_linear_backward",
        {"grad": grad, "ids": choice, "stored": stored, "layout": layout, "in_features": COLUMNS},
        free,
    )
    if not native.available():
        return
    packed = packed_layout_of(q.layout, ROWS, COLUMNS).pack(q)
    place = {"layout": layout, "out_features": ROWS, "in_features": COLUMNS, "planes": 0}
    planes = {"planes": (0, *q.layout.prefixes)}
    yield RightCall(
        "experts_linear_packed_backward",
        {"grad": grad, "ids": choice, "packed": packed, **place}, free, planes,
    )  # fmt: skip
    runnable = tuple(p.name for p in native.targets("experts") if not native.lacks(p.feature))
    for target in runnable[-1:]:
        yield RightCall(
            "experts_linear_packed",
            {**call, "packed": packed, "bias": bias, "layout": layout,
             "out_features": ROWS, "planes": 0, "activations": "float", "target": target},
            free, {**how, **planes, "target": runnable},
        )  # fmt: skip
