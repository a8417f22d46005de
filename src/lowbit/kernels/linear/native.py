"""Linear layers with quantized weights by csrc/linear.h.

The same call quantizes activations. *Dynamic* activations become int8 per group, and the results
have the bits of the reference. *Float* activations use one of two families of arithmetic
(families.py): fixed-point numbers of 32 bits per group, split into four int8 limbs, so that
products and sums are exact integers; or float32. The error of both is at most twice that of a
float32 product. All targets give the same bits, for float activations within a family.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import QTensor, StaticScale
from lowbit.kernels import packed_layout
from lowbit.kernels.checks import check_bias
from lowbit.kernels.linear import families
from lowbit.kernels.native import module, targets
from lowbit.kernels.selection import Kernel
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of

ROWS_AT_ONCE = 1024
DYNAMIC = StaticScale(0.0)  # the value of `input` without static activations
_READ = (torch.float32, torch.bfloat16)  # dtypes that native code reads; others become float32


class LinearProduct:
    """The product with a weight packed as `form`, on one target of the native code, with a
    nonlinearity.

    It caches everything that does not change between calls. If `input` is static with a zero point
    other than 0, calls must pass the bias of `shifted_bias`. family: of float activations; by
    default the family of the target; None if activations are int8.
    """

    def __init__(
        self,
        form: AnyPackedLayout,
        activations: str,
        target: str,
        nonlinearity: str = "identity",
        input: StaticScale | None = None,
        family: str | None = None,
    ) -> None:
        assert module is not None
        family = family or families.family(activations, target)
        self.form, self.activations, self.target = form, activations, target
        self.nonlinearity, self.input, self.family = nonlinearity, input, family
        self.out_features, self.in_features = form.out_features, form.in_features
        width = form.layout.granularity.width(form.in_features)
        # Products with equal values quantize their input in the same way.
        self.input_form = form.in_features, width, activations, target, input, family
        self._limbs = families.limbs(family)
        self.parts = form.parts
        self._target = module.LinearTarget(target, family == "fma")
        self._layers = self._made(False, False)
        # Layers by whether the bias is bfloat16; created for the first x in bfloat16.
        self._bfloat16: dict[bool, list[Any]] = {}

    def _made(self, bfloat16: bool, bfloat16_bias: bool) -> list[Any]:
        """The native description of each part."""
        assert module is not None
        known = self.input or DYNAMIC
        return [
            module.Layer(
                part.layout.weight,
                getattr(module.Nonlinearity, self.nonlinearity),
                known.scale,
                known.zero_point,
                known.lowest,
                bfloat16,
                bfloat16_bias,
            )
            for part in self.parts
        ]

    def layers(self, x: Tensor, bias: Tensor | None) -> list[Any]:
        """The native parts for the dtypes of this x and bias."""
        if x.dtype is torch.float32:
            return self._layers
        half = bias is not None and bias.dtype is torch.bfloat16
        if half not in self._bfloat16:
            self._bfloat16[half] = self._made(True, half)
        return self._bfloat16[half]

    def __reduce__(self) -> tuple[Any, ...]:
        """Native objects cannot be copied; a copy creates new ones."""
        return LinearProduct, (
            self.form,
            self.activations,
            self.target,
            self.nonlinearity,
            self.input,
            self.family,
        )

    def __call__(
        self,
        x: Float[Tensor, "*tokens in"],
        packed: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, " out"] | None,
    ) -> Float[Tensor, "*tokens out"]:
        """f(x · Wᵀ + bias) in x's dtype. Raises UsageError if x or bias does not fit."""
        if len(self._layers) > 1:
            return together([self], x, [(packed, bias)])[0]
        shape, dtype = x.shape, x.dtype
        x = self._ready(x)
        bias = _beside(x, bias, self.out_features)
        # Separate sizes: a concatenated tuple takes twice as long.
        y = x.new_empty(*shape[:-1], self.out_features)
        self._target(
            (self._layers if x.dtype is torch.float32 else self.layers(x, bias))[0],
            x.data_ptr(),
            packed.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            x.numel() // self.in_features,
            self._limbs,
        )
        return y if y.dtype is dtype else y.to(dtype)

    def _ready(self, x: Tensor) -> Tensor:
        """x in the dtype and layout that native code reads."""
        if x.shape[-1] != self.in_features or not x.is_cpu:
            raise UsageError(
                f"x {list(x.shape)} on {x.device} does not fit a weight"
                f" {[self.out_features, self.in_features]} prepacked on the CPU"
            )
        if x.dtype in _READ and x.is_contiguous():
            return x
        if not x.is_floating_point():
            raise UsageError(f"x {list(x.shape)} is {x.dtype}: a linear layer takes floats")
        return x.float().contiguous()


def _beside(x: Tensor, bias: Tensor | None, outputs: int) -> Tensor | None:
    """The bias in a dtype that native code reads: float32, or bfloat16 if x is bfloat16. Raises
    UsageError if it is not one number per output on the CPU."""
    if bias is None:
        return None
    if bias.numel() != outputs or bias.dim() != 1 or not bias.is_cpu:
        raise UsageError(
            f"bias {list(bias.shape)} on {bias.device} does not fit a weight of {outputs} outputs"
            " prepacked on the CPU"
        )
    same = bias.dtype is x.dtype and bias.is_contiguous()
    return bias if same else bias.float().contiguous()


def _all_beside(
    products: Sequence[LinearProduct],
    x: Tensor,
    weights: Sequence[tuple[UInt8[Tensor, " bytes"], Float[Tensor, " out"] | None]],
) -> list[Tensor | None]:
    return [
        _beside(x, bias, product.out_features)
        for product, (_, bias) in zip(products, weights, strict=True)
    ]


def together(
    products: Sequence[LinearProduct],
    x: Float[Tensor, "*tokens in"],
    weights: Sequence[tuple[UInt8[Tensor, " bytes"], Float[Tensor, " out"] | None]],
) -> list[Float[Tensor, "*tokens _out"]]:
    """The products of x with several (packed, bias), with the same bits as separate calls.

    x is quantized once: the products must have the same `input_form`.
    """
    first, shape, dtype = products[0], x.shape, x.dtype
    x = first._ready(x)
    biases = _all_beside(products, x, weights)
    results = [
        [x.new_empty(*shape[:-1], part.layout.out_features) for part in product.parts]
        for product in products
    ]
    layers, places = _layers_and_places(products, x, weights, biases, results)
    rows = x.numel() // first.in_features
    first._target.together(layers, x.data_ptr(), places, rows, first._limbs)
    ys = [parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in results]
    return ys if x.dtype is dtype else [y.to(dtype) for y in ys]


def _layers_and_places(
    products: Sequence[LinearProduct],
    x: Tensor,
    weights: Sequence[tuple[UInt8[Tensor, " bytes"], Float[Tensor, " out"] | None]],
    biases: Sequence[Float[Tensor, " out"] | None],
    results: Sequence[Sequence[Float[Tensor, "*tokens _out"]]],
) -> tuple[list[Any], list[int]]:
    """All parts of all products as native objects, and the addresses of codes, bias and result of
    each."""
    layers: list[Any] = []
    places: list[int] = []
    for product, (packed, _), bias, ys in zip(products, weights, biases, results, strict=True):
        layers += product.layers(x, bias)
        for (_, start, row), y in zip(product.parts, ys, strict=True):
            own = 0 if bias is None else bias.data_ptr() + row * bias.element_size()
            places += packed.data_ptr() + start, own, y.data_ptr()
    return layers, places


def in_place(
    products: Sequence[LinearProduct],
    weights: Sequence[tuple[UInt8[Tensor, " bytes"], Float[Tensor, " out"] | None]],
    ys: Sequence[Float[Tensor, "*tokens _out"]],
) -> Callable[[int], None]:
    """A function of the address of x for repeated calls with the same weights. It writes results to
    the float32 tensors `ys`. x must be contiguous float32 with as many tokens."""
    first, biases = products[0], _all_beside(products, ys[0], weights)
    results, joined = [], []
    for product, y in zip(products, ys, strict=True):
        parts = [y]
        if len(product.parts) > 1:
            sizes = [part.layout.out_features for part in product.parts]
            parts = [y.new_empty(*y.shape[:-1], size) for size in sizes]
            joined.append((parts, y))
        results.append(parts)
    layers, places = _layers_and_places(products, ys[0], weights, biases, results)
    # Keep references to the memory in use. Steps are compared by the products that they keep.
    kept = products, weights, biases, results
    rows, limbs = ys[0].numel() // first.out_features, first._limbs
    run = first._target.together

    def call(x: int, kept: object = kept) -> None:
        run(layers, x, places, rows, limbs)
        for parts, y in joined:
            torch.cat(parts, -1, out=y)

    return call


def linear(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    nonlinearity: str = "identity",
    input: StaticScale | None = None,
    *,
    activations: str,
    target: str,
) -> Float[Tensor, "*tokens out"]:
    """Multiply by a stored weight, which is packed for this call only."""
    form = packed_layout_of(q.layout, *q.shape)
    packed = form.pack(q)
    if input is not None:
        bias = shifted_bias(form, packed, bias, input)
    return LinearProduct(form, activations, target, nonlinearity, input)(x, packed, bias)


def shifted_bias(
    form: AnyPackedLayout,
    packed: UInt8[Tensor, " bytes"],
    bias: Float[Tensor, " out"] | None,
    input: StaticScale,
) -> Float[Tensor, " out"] | None:
    """The bias minus the contribution of the zero point of static activations to every token,
    scale · zero_point · Σ_k w, summed in float64. Raises UsageError if the bias does not fit."""
    check_bias(bias, form.out_features, torch.device("cpu"))
    if input.zero_point == 0:
        return bias
    sums = torch.zeros(form.out_features, dtype=torch.float64)
    for rows in torch.arange(form.out_features).split(ROWS_AT_ONCE):
        sums[rows] = form.decode(packed, rows, torch.float32).double().sum(1)
    shift = sums * (input.scale * input.zero_point)
    return ((0.0 if bias is None else bias.double()) - shift).float()


def kernels(activations: str) -> tuple[Kernel, ...]:
    """The kernels of all targets, best first."""
    return tuple(
        Kernel(
            target.name,
            partial(linear, activations=activations, target=target.name),
            packed_layout.unsupported,
            target.feature,
        )
        for target in targets("linear")
    )
