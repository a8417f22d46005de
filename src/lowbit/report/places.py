"""Where in a network a module stands, read from its name.

    transformer.h.11.attn.c_attn  ->  stack "transformer.h", layer 11, kind "attn.c_attn"
    encoder.block.3.layer.0.SelfAttention.q  ->  stack "encoder.block", layer 3,
                                                 kind "layer.0.SelfAttention.q"
    lm_head  ->  no layer

The first component that is an integer is the layer; the encoder's stack and the decoder's differ by
what stands before it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

INTEGER = re.compile("0|[1-9][0-9]{0,8}")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    stack: str
    layer: int | None
    kind: str


def place(name: str) -> Place:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if INTEGER.fullmatch(part):
            return Place(".".join(parts[:i]), int(part), ".".join(parts[i + 1 :]))
    return Place("", None, name)


@dataclass(frozen=True)
class Stack:
    """The modules of one stack: names[kind][layer]; kinds in the order of the model."""

    name: str
    layers: tuple[int, ...]
    names: dict[str, dict[int, str]]


def arrange(names: Iterable[str]) -> tuple[list[Stack], list[str]]:
    """The stacks that these modules form, and the modules that belong to no layer."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    alone: list[str] = []
    for name in dict.fromkeys(names):
        at = place(name)
        if at.layer is None:
            alone.append(name)
        else:
            found.setdefault(at.stack, {}).setdefault(at.kind, {})[at.layer] = name
    stacks = [
        Stack(stack, tuple(sorted({layer for row in kinds.values() for layer in row})), kinds)
        for stack, kinds in found.items()
    ]
    return stacks, alone


def evenly(items: list[T], at_most: int) -> list[T]:
    """So many of `items`, spread over all of them, the first and the last among them."""
    if len(items) <= at_most:
        return items
    return [items[i * (len(items) - 1) // (at_most - 1)] for i in range(at_most)]
