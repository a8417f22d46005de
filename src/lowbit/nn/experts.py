"""QuantExperts: the quantized weights [experts, out, in] of a mixture; and the forward pass of a
mixture with quantized projections.

transformers describes an experts module by attributes (`use_experts_implementation`): a gate,
biases, transposed weights, a norm after each expert. It finds the forward in a registry by name;
lowbit registers one for every class with these attributes. The module keeps its class. A
QuantExperts replaces the float parameter, and code can use it like a tensor. If a class lacks the
attributes, its own forward does so, and lowbit computes the products.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_map_only
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lowbit.errors import InputError
from lowbit.fallbacks import note
from lowbit.formats import ExpertsLayout, ExpertsTensor
from lowbit.kernels import experts, ops
from lowbit.kernels.checks import check_choices
from lowbit.kernels.experts.native import ExpertsProduct
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.selection import Kernel
from lowbit.nn.decoded_weight import DecodedWeight
from lowbit.nn.gates import IDENTITY, known_gate
from lowbit.nn.packed_weight import PackedWeight
from lowbit.nn.quant_module import QuantModule

IMPLEMENTATION = "lowbit"  # the name in transformers' registry
FLOAT = "grouped_mm"  # transformers' implementation for float experts
_OF_TENSORS = frozenset(name for name in dir(Tensor) if not name.startswith("_"))


class QuantExperts(QuantModule):
    """The weights of all experts in one projection. transposed: the float parameter was
    [experts, in, out]. activations: "float", or "dynamic" for int8 with scales per call."""

    layout: ExpertsLayout
    product: ExpertsProduct | None
    slots: int | None  # experts per token in the last call

    def __init__(
        self,
        layout: ExpertsLayout,
        rows: int,
        columns: int,
        activations: str = "float",
        transposed: bool = False,
    ) -> None:
        outputs = layout.rows(rows)
        matrix = (columns, outputs) if transposed else (outputs, columns)
        super().__init__(layout, rows, columns, (layout.experts, *matrix))
        self.experts, self.in_features, self.out_features = layout.experts, columns, outputs
        self.activations, self.transposed = activations, transposed
        self.product, self.slots = None, None
        # Else transformers would initialize it as a weight that the checkpoint lacks.
        self._is_hf_initialized = True

    def forward(
        self,
        x: Tensor,
        ids: Tensor,
        bias: Tensor | None,
        gate: str = IDENTITY,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Multiply x [tokens, in] by the experts ids [tokens, slots] -> [tokens, slots, out].

        gate: a nonlinearity f that `takes_gate` allows. The result is f(first half) · second half,
        with out/2 columns.
        weights: [tokens, slots]. Then x is [tokens · slots, in], a row per slot, and the results of
        the slots, times the weights, are summed in order: [tokens, out].

        Raises UsageError if the sizes of x, ids and weights do not match.
        """
        if has_torch_function((x, ids)):  # TorchFunctionModes see one call
            return handle_torch_function(
                QuantExperts.forward, (x, ids), self, x, ids, bias, gate, weights
            )
        check_choices(x, ids, weights)
        packed, product = self._packed_call()
        if packed is None or product is None:
            q = self.weight_in_use
            assert isinstance(q, ExpertsTensor)
            linear = partial(ops.experts_linear, q=q, bias=bias, activations=self.activations)
        else:
            if weights is not None and product.sums(x, weights) and not _seen(x, bias, weights):
                return product(x, ids, packed.bytes, bias, weights=weights)
            call = ops.experts_linear_packed
            linear = partial(call, packed=packed.bytes, bias=bias, product=product, gate=gate)
        if weights is None:
            return linear(x, ids)
        return weighted_sum(linear(x, ids.reshape(-1, 1)).flatten(0, 1), weights).to(x.dtype)

    def takes_gate(self, gate: str, x: Tensor, bias: Tensor | None) -> bool:
        """Whether the product can apply this gate in a call with x."""
        if ops.dispatched(x, bias):
            return False
        _, product = self._packed_call()
        return product is not None and product.gates(gate)

    def _packed_call(self) -> tuple[PackedWeight | None, ExpertsProduct | None]:
        """The arguments of native code; None if the reference computes with the stored weights."""
        packed = self.packed or self.pack()
        if packed is None:
            return None, None
        assert isinstance(packed.layout, ExpertsPackedLayout)
        product = self.product
        if product is None or product.form is not packed.layout:
            product = self.product = experts.product(packed.layout, self.activations)
        return packed, product

    def decoded(self) -> Tensor:
        """The decoded weights in the shape of the float parameter."""
        return self.as_parameter(super().decoded())

    def as_parameter(self, weight: Tensor) -> Tensor:
        """Rows of all experts [experts · out, in] in the shape of the float parameter."""
        weight = weight.unflatten(0, (self.experts, self.out_features))
        return weight.transpose(1, 2).contiguous() if self.transposed else weight

    def choose(self) -> tuple[Kernel, str]:
        """The kernel of these weights on this machine, and the reason for its choice."""
        device = self.compute.device
        return experts.kernel(self.layout, self.in_features, device, self.activations)

    def describe(self) -> str:
        dynamic = self.activations == "dynamic"
        return super().describe() + (", dynamic int8 activations" if dynamic else "")

    def extra_repr(self) -> str:
        return f"{self.experts}, {self.in_features}, {self.out_features}, {self.describe()}"

    def __getitem__(self, index: Any) -> Tensor:
        """Index like the float parameter. An integer decodes only that expert."""
        number = index
        if isinstance(index, Tensor) and index.dim() == 0 and not index.is_floating_point():
            number = int(index)
        if not isinstance(number, int) or torch.compiler.is_compiling():
            return self.weight[index]
        number = range(self.experts)[number]
        like = torch.empty(self.float_shape[1:], dtype=self.compute.dtype, device="meta")
        decode = partial(self._decoded_for_code, number)
        one = ExpertWeight(like, self.compute.device, decode, None)
        if not self.transposed:
            one.linear = partial(self._of_one_expert, number)
        return one

    def _of_one_expert(self, number: int, x: Tensor) -> Tensor:
        """Multiply x [*, in] by one expert -> [*, out]."""
        rows = x.reshape(-1, self.in_features)
        y = self(rows, rows.new_full((len(rows), 1), number, dtype=torch.int64), None)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _of_all_experts(self, x: Tensor) -> Tensor:
        """Multiply x [experts, tokens, in], each part by its expert -> [experts, tokens, out]."""
        ids = torch.arange(self.experts, device=x.device).repeat_interleave(x.shape[1])
        y = self(x.reshape(-1, self.in_features), ids[:, None], None)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _decoded_for_code(self, number: int) -> Tensor:
        note(self, "Code reads the weights of experts, which are decoded for it.", warn=False)
        with torch.no_grad():
            return self._decoded_expert(number)

    def _decoded_expert(self, number: int) -> Tensor:
        packed, dtype = self.packed, self.compute.dtype
        if packed is None:
            q = self.weight_in_use
            assert isinstance(q, ExpertsTensor)
            weight = ops.dequantize(q.expert(number), dtype)
        else:
            assert isinstance(packed.layout, ExpertsPackedLayout)
            weight = packed.layout.expert(packed.bytes, number, dtype)
        return weight.t() if self.transposed else weight

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Functions of torch get the decoded weights, but lowbit computes the product by all."""
        match func, args:
            case torch.bmm, (Tensor() as x, QuantExperts() as own) if not kwargs and own.transposed:
                if x.shape[::2] == (own.experts, own.in_features):
                    return own._of_all_experts(x)
        call = args, dict(kwargs or {})
        args, kwargs = tree_map_only(QuantExperts, lambda own: own.weight, call)
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the float parameter: its shape, its dtype, its methods."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _OF_TENSORS:
                raise
            return getattr(self.weight, name)


class ExpertWeight(DecodedWeight):
    """The weight of one expert. Linear layers with it run lowbit's kernels without decoding."""

    linear: Callable[[Tensor], Tensor] | None = None  # None for a view

    @classmethod
    def __torch_function__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        match func, args:
            case F.linear, (Tensor() as x, ExpertWeight() as own) if not kwargs:
                if own.linear is not None and x.shape[-1:] == own.shape[1:]:
                    return own.linear(x)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def experts_forward(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The forward pass with the arguments of transformers: hidden_states [tokens, size], the ids of
    the experts of each token and their weights [tokens, slots] -> [tokens, size].

    The results of the experts are summed in the order of the slots. An id equal to the number of
    experts chooses none. Raises InputError if ids are not integers or out of range.
    """
    up, down = projections(module)
    if up is None or down is None:
        y: Tensor = ALL_EXPERTS_FUNCTIONS[FLOAT](module, hidden_states, top_k_index, top_k_weights)
        return y
    ids = _numbers(module, top_k_index, up.experts)
    biases: tuple[Any, Any] = (None, None)
    if module.has_bias:
        name = "gate_up_proj_bias" if module.has_gate else "up_proj_bias"
        biases = getattr(module, name), module.down_proj_bias
    up.slots = down.slots = ids.shape[1]
    gate = known_gate(module, up.out_features // 2) if module.has_gate else IDENTITY
    if up.takes_gate(gate, hidden_states, biases[0]):
        x = up(hidden_states, ids, biases[0], gate).flatten(0, 1)
    else:
        x = up(hidden_states, ids, biases[0]).flatten(0, 1)
        x = module._apply_gate(x) if module.has_gate else module.act_fn(x)  # type: ignore[operator]
    if module.has_post_expert_norm:
        x = down(x, ids.reshape(-1, 1), biases[1]).flatten(0, 1)
        x = weighted_sum(module.post_expert_norm(x), top_k_weights)  # type: ignore[operator]
    else:
        x = down(x, ids, biases[1], weights=top_k_weights)
    return x.to(hidden_states.dtype)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """x [tokens · slots, size] times weights [tokens, slots], summed over the slots."""
    return (x * weights.reshape(-1, 1)).unflatten(0, weights.shape).sum(1)


def _seen(x: Tensor, bias: Tensor | None, weights: Tensor) -> bool:
    """Whether autograd, a compiler or a tracer must see the call."""
    return ops.dispatched(x, bias) or ops.dispatched(weights, None)


def projections(module: nn.Module) -> tuple[QuantExperts | None, QuantExperts | None]:
    """The projections of an experts module, up and down; None for a float one."""
    names = "gate_up_proj" if module.has_gate else "up_proj", "down_proj"
    up, down = (module._modules.get(name) for name in names)
    return (
        up if isinstance(up, QuantExperts) else None,
        down if isinstance(down, QuantExperts) else None,
    )


def _numbers(module: nn.Module, ids: Tensor, experts: int) -> Tensor:
    """The ids of experts as int64, with one id for all that choose no expert."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise InputError(f"expert numbers must be integers, not {ids.dtype}")
    ids = ids.to(torch.int64)
    # Expert parallelism gives ids beyond the local ones to experts of other processes.
    return ids.clamp(max=experts) if module._is_expert_parallel else ids


def register() -> None:
    """Register lowbit's forward pass of experts with transformers."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
