"""The float weight of a quantized module, for code that reads `layer.weight`.

It knows its shape, dtype and device without decoding, and so do its views. An operation that needs
the numbers decodes them, once per read of `.weight`; the module keeps its packed bytes. Writes
raise an error, because they would not change the stored codes.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Self

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from lowbit.errors import UsageError


class DecodedWeight(Tensor):
    """A tensor with the shape, strides and dtype of `like`, on `device`; its numbers come from
    `decode`, which is called at most once. `rescale` multiplies the stored weight by a number; None
    for a part of a weight."""

    decode: Callable[[], Tensor]
    rescale: Callable[[float], None] | None
    known: Tensor | None

    @staticmethod
    def __new__(
        cls,
        like: Tensor,
        device: torch.device,
        decode: Callable[[], Tensor],
        rescale: Callable[[float], None] | None,
    ) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            like.shape,
            strides=like.stride(),
            storage_offset=like.storage_offset(),
            dtype=like.dtype,
            device=device,
        )
        made.decode, made.rescale, made.known = decode, rescale, None
        made._is_hf_initialized = True  # type: ignore[attr-defined]  # so transformers leaves it
        return made

    def numbers(self) -> Tensor:
        """The decoded weight as an ordinary tensor."""
        if self.known is None:
            self.known = self.decode()
        return self.known

    def rescale_stored(self, factor: float) -> None:
        """Multiply the stored weight. Raises UsageError if `rescale` does, or for a part of a
        weight."""
        if self.rescale is None:
            raise _no_writing("a part of it is multiplied")
        self.rescale(factor)
        self.known = None

    def numpy(self, *, force: bool = False) -> "numpy.ndarray[Any, Any]":
        """A read-only copy."""
        array = self.numbers().numpy(force=force).copy()
        array.setflags(write=False)
        return array

    def tolist(self) -> Any:
        return self.numbers().tolist()

    def data_ptr(self) -> int:
        return self.numbers().data_ptr()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise _no_writing("requires_grad_")
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DecodedWeight({list(self.shape)}, {self.dtype}, {self.device})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.numbers().clone()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call = args, dict(kwargs or {})
        if is_view(func):
            return cls._view(func, call)
        factor = _factor(func, *call)
        if factor is not None:
            args[0].rescale_stored(factor)
            return args[0]
        _refuse_writes(func, *call)
        args, kwargs = tree_map_only(DecodedWeight, DecodedWeight.numbers, call)
        return func(*args, **kwargs)

    @classmethod
    def _view(cls, func: Any, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """A view. It decodes lazily and refuses writes, like the whole weight."""
        (weight,) = {id(leaf): leaf for leaf in tree_leaves(call) if isinstance(leaf, cls)}.values()
        args, kwargs = tree_map_only(cls, _without_numbers, call)
        views, structure = tree_flatten(func(*args, **kwargs))

        def decode(place: int) -> Tensor:
            args, kwargs = tree_map_only(cls, cls.numbers, call)
            view: Tensor = tree_leaves(func(*args, **kwargs))[place]
            return view

        made = [
            cls(
                view,
                weight.device,
                partial(decode, i),
                weight.rescale_stored if view.numel() == weight.numel() else None,
            )
            for i, view in enumerate(views)
        ]
        return tree_unflatten(made, structure)


def _without_numbers(weight: Tensor) -> Tensor:
    made = torch.empty_strided((1,), (1,), dtype=weight.dtype, device="meta")
    return made.as_strided(weight.shape, weight.stride(), 0)


@lru_cache(maxsize=1024)
def is_view(func: Any) -> bool:
    """Whether the result of `func` shares memory with an argument that `func` does not change."""
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _factor(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The factor, if `func` multiplies a decoded weight in place by a positive number; else
    None."""
    multiplies = func.overloadpacket in (torch.ops.aten.mul_, torch.ops.aten.div_)
    if not multiplies or len(args) != 2 or kwargs:
        return None
    weight, by = args
    if isinstance(by, Tensor) and by.ndim == 0 and not by.is_meta:
        by = by.item()
    if not isinstance(weight, DecodedWeight) or not isinstance(by, int | float) or not by > 0:
        return None
    return by if func.overloadpacket is torch.ops.aten.mul_ else 1 / by


def _refuse_writes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises UsageError if `func` would write to a decoded weight."""
    schema = func._schema
    if not schema.is_mutable:
        return
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if any(isinstance(leaf, DecodedWeight) for leaf in tree_leaves(value)):
            raise _no_writing(schema.name.removeprefix("aten::"))


def _no_writing(name: str) -> UsageError:
    return UsageError(
        f"the weight of a quantized layer cannot be changed ({name}): its codes would not follow;"
        " change the float model, or call dequantize() first"
    )
