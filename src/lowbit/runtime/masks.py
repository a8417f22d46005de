"""Find out which tokens see which, by running the part of a graph that makes an attention's mask.

Models make masks in many ways, from padding, windows and distances. All masks depend only on the
batch size, the length and the attention mask, so that part of the graph can run alone: on lengths
around every number in it, with padding on the right, on the left, and in between. Supported masks
have the form

    query q sees key k   if the token k exists, and |q - k| <= window, and k <= q if causal
    and adds             bias[head, q, k], the same for all sequences
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.runtime.capture import LEAST, Captured, kind
from lowbit.runtime.part import above, part

aten = torch.ops.aten
# Operators that read only sizes, dtype and device of a tensor.
SIZES_ALONE = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten.full_like.default,
        aten.new_full.default,
        aten.new_ones.default,
        aten.new_zeros.default,
        aten.ones_like.default,
        aten.sym_size.int,
        aten.zeros_like.default,
    }
)
FORBIDDEN = -1e30  # added numbers below it forbid a key
MOST_LENGTH = 1024  # the longest length to run
SEED = 0


@dataclass(frozen=True)
class Sight:
    """Which keys a query sees. window: 0 for all keys. bias: a function from the tensors of a call,
    with an attention mask of ones, to [1, heads, length, length]; None if there is no bias."""

    causal: bool = False
    window: int = 0
    bias: Callable[..., tuple[Tensor]] | None = None


def sight(
    captured: Captured, mask: fx.Node, attention_mask: fx.Node | None, limit: int
) -> Sight | str:
    """Which keys the mask of an attention lets queries see, or why this is unknown. limit: the most
    tokens of the model."""
    inputs = [node for node in captured.graph.nodes if node.op == "placeholder"]
    needed = above([mask], set(inputs))
    for node in needed:
        read = [n for n in node.all_input_nodes if n in inputs and n is not attention_mask]
        if read and node.target not in SIZES_ALONE:
            return f"a mask depends on what is in {read[0].name}"
    run = part(captured.module, inputs, [mask], captured.modules)
    generator = torch.Generator().manual_seed(SEED)
    if all(_floats(node) for node in inputs):  # images of one size
        (value,) = run(*(_tried(node, None, None, LEAST, 0) for node in inputs))
        lengths = [value.shape[-1]]
    else:
        lengths = sorted({n for n in _lengths(needed) if 1 <= n <= limit})
    found: Sight | None = None
    for length in reversed(lengths):  # the greatest length shows a window
        for exists in _paddings(length, generator) if attention_mask else [None]:
            batch = 3 if exists is None else len(exists)
            tensors = [_tried(node, attention_mask, exists, batch, length) for node in inputs]
            (value,) = run(*tensors)
            if value.dim() != 4 or value.shape[-2:] != (length, length):
                return f"a mask {list(value.shape)} is not [batch, heads, queries, keys]"
            allowed = value if value.dtype is torch.bool else value > FORBIDDEN
            if exists is None or bool(exists.all()):
                shown = _pattern(allowed[0, 0])
                if shown is None:
                    return "what the mask allows is neither all keys nor a window"
                if found is None:
                    found = Sight(*shown)
                elif not torch.equal(_seen(found, length), _seen(Sight(*shown), length)):
                    return "what the mask allows differs from length to length"
                plain = value[0]
            assert found is not None
            there = torch.ones(batch, length, dtype=torch.bool) if exists is None else exists
            wanted = (_seen(found, length) & there[:, None, :])[:, None]
            asked = there[:, None, :, None].expand_as(allowed)
            if not torch.equal(allowed & asked, wanted.expand_as(allowed) & asked):
                return "what the mask allows is not whether keys exist"
            if value.dtype is not torch.bool:
                added = torch.where(allowed & asked, value - plain, 0)
                if not bool((added == 0).all()):
                    return "what the mask adds differs from sequence to sequence"
                if bool((torch.where(allowed, value, 0) != 0).any()):
                    found = Sight(found.causal, found.window, run)
    return found or "no length could be tried"


def _lengths(needed: list[fx.Node]) -> set[int]:
    """A few lengths, and those around every number in a part of a graph."""
    numbers: set[int] = set()

    def take(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            numbers.add(abs(value))
        return value

    for node in needed:
        fx.node.map_aggregate((node.args, node.kwargs), take)
    around = {n + more for n in numbers if n <= MOST_LENGTH for more in (-1, 0, 1, 2)}
    return {2, 7, 16, 33, *(n for n in around if n >= 2)}


def _paddings(length: int, generator: torch.Generator) -> list[Tensor]:
    """Attention masks [4, length], the first without padding. Every sequence has a token."""
    all_there = torch.ones(4, length, dtype=torch.bool)
    at = torch.arange(length)
    ends = torch.randint(1, length + 1, (4, 1), generator=generator)
    holes = torch.rand(4, length, generator=generator) < 0.5
    holes[torch.arange(4), torch.randint(length, (4,), generator=generator)] = True
    return [all_there, at < ends, at >= length - ends, holes]


def _tried(
    node: fx.Node, mask: fx.Node | None, exists: Tensor | None, batch: int, length: int
) -> Tensor:
    like = kind(node)
    assert like is not None
    if node is mask and exists is not None:
        return exists.to(like.dtype)
    free = (batch,) if like.floats else (batch, length)
    return torch.zeros((*free, *map(int, like.sizes[len(free) :])), dtype=like.dtype)


def _floats(node: fx.Node) -> bool:
    found = kind(node)
    return found is not None and found.floats


def _pattern(allowed: Tensor) -> tuple[bool, int] | None:
    """Whether a mask [query, key] without padding is causal, and its window."""
    length = len(allowed)
    at = torch.arange(length)
    distance = at[:, None] - at
    causal = length > 1 and not bool(allowed[distance < 0].any())
    reach = distance.abs()[allowed]
    window = int(reach.max()) if reach.numel() else 0
    made = Sight(causal, 0 if window == length - 1 else window)
    return (made.causal, made.window) if torch.equal(_seen(made, length), allowed) else None


def _seen(sight: Sight, length: int) -> Tensor:
    at = torch.arange(length)
    distance = at[:, None] - at
    seen = torch.ones(length, length, dtype=torch.bool)
    if sight.causal:
        seen &= distance >= 0
    if sight.window:
        seen &= distance.abs() <= sight.window
    return seen
