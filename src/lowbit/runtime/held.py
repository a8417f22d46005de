"""The parts of a model that a program reads, and whether the model still has them."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowbit.formats import StaticScale
from lowbit.nn import QuantLinear
from lowbit.nn.linear import PackedCall
from lowbit.nn.plain_attributes import PlainAttributes
from lowbit.runtime.capture import Captured
from lowbit.runtime.operations import Linear, Lookup, Operation


@dataclass(frozen=True, eq=False)
class Held:
    """The parts of a model that a program reads.

    packed: packed weights by module. tensors: parameters and buffers by owner and name, with their
    data addresses. static: layers with static activations, and what their numbers became. fused:
    layers with their nonlinearity. links: modules by parent and attribute. attributes: of all
    modules.
    """

    packed: tuple[tuple[dict[str, Any], Any], ...]
    tensors: tuple[tuple[dict[str, Any], str, Tensor, int], ...]
    static: tuple[tuple[QuantLinear, PackedCall, tuple[StaticScale, ...]], ...]
    fused: tuple[tuple[QuantLinear, str], ...]
    links: tuple[tuple[dict[str, Any], str, nn.Module | None], ...]
    attributes: PlainAttributes

    @classmethod
    def of(cls, operations: Sequence[Operation], captured: Captured) -> "Held":
        packed: list[tuple[dict[str, Any], Any]] = []
        tensors: list[tuple[dict[str, Any], str, Tensor, int]] = []
        static: list[tuple[QuantLinear, PackedCall, tuple[StaticScale, ...]]] = []
        fused: list[tuple[QuantLinear, str]] = []
        for operation in operations:
            if isinstance(operation, Linear):
                for layer, call in zip(operation.layers, operation.calls, strict=True):
                    packed.append((layer.owner.__dict__, call.weight))
                    if call.own_bias is not None:
                        at = call.own_bias.data_ptr()
                        tensors.append((layer._parameters, "bias", call.own_bias, at))
                    if layer.activations == "static":
                        static.append((layer, call, layer.static_scales()))
                    if layer.in_force is not None:
                        fused.append((layer, layer.nonlinearity_now()))
            elif isinstance(operation, Lookup) and operation.packed is not None:
                assert isinstance(operation.table, nn.Module)
                packed.append((operation.table.owner.__dict__, operation.packed))
        for target in captured.tensors:
            path, _, name = target.rpartition(".")
            owner = operator.attrgetter(path)(captured.owner) if path else captured.owner
            for holder in (owner._parameters, owner._buffers):
                tensor = holder.get(name)
                if tensor is not None:
                    tensors.append((holder, name, tensor, tensor.data_ptr()))
        modules = list(captured.owner.modules())
        links = [
            (module._modules, name, child)
            for module in modules
            for name, child in module._modules.items()
        ]
        return cls(
            tuple(packed),
            tuple(tensors),
            tuple(static),
            tuple(fused),
            tuple(links),
            PlainAttributes(modules),
        )

    def still(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(owner["packed"] is weight for owner, weight in self.packed)
            and all(
                holder.get(name) is tensor and tensor.data_ptr() == at
                for holder, name, tensor, at in self.tensors
            )
            and all(
                call.current() and layer.static_scales() == scales
                for layer, call, scales in self.static
            )
            and all(children.get(name) is child for children, name, child in self.links)
            and all(layer.nonlinearity_now() == how for layer, how in self.fused)
            and self.attributes.same()
        )
