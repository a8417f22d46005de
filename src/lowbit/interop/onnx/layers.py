"""Modules that replace quantized modules before tracing: each has a weight in the layout of ONNX's
operators and calls these operators.

    activations   scales of the weight    operators
    float         any                     MatMulNBits
    dynamic       of rows                 ReduceMax, Div, QuantizeLinear; MatMulIntegerToFloat
    dynamic       of groups               MatMulNBits that may round a row's blocks to int8
    static        of rows                 QuantizeLinear, DequantizeLinear; MatMul
    static        of groups               QuantizeLinear, DequantizeLinear; MatMulNBits
    embeddings    any                     GatherBlockQuantized

Tracing sees shapes and dtypes: the operators are recorded, not computed. MatMulNBits,
GatherBlockQuantized and MatMulIntegerToFloat are of the domain com.microsoft, the others of the
standard. Weights of int8 products are uint8 around 128: programs add up uint8 · int8 in 16 bits on
processors without VNNI, where such sums saturate. `signed` makes them int8, for processors that
have it: there only such products are fast.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor, nn
from torch.onnx import ops

from lowbit.formats import AffineTensor, StaticScale
from lowbit.formats.packing import pack
from lowbit.interop.onnx.blocks import Blocks, codes_from_zero, to_blocks
from lowbit.kernels.quantize_rows.reference import TINY
from lowbit.nn import QuantEmbedding, QuantLinear, QuantModule, RequantizedLinear
from lowbit.nn.embedding import scaled

OWN = "com.microsoft"
INT8_ACTIVATIONS = 4  # of `accuracy_level`
LEVELS = 127.0  # of int8 codes, on either side of 0
MIDDLE = 128  # the zero point of uint8 codes that are int8 ones moved up


def call(
    name: str,
    inputs: Sequence[Tensor],
    shape: Sequence[Any],
    dtype: torch.dtype,
    **attributes: Any,
) -> Tensor:
    """The traced result of an operator "domain::Name"."""
    version = 1 if name.startswith(OWN) else None
    result: Tensor = ops.symbolic(
        name, inputs, attributes, dtype=dtype, shape=list(shape), version=version
    )
    return result


class Layer(nn.Module):
    """Replaces a quantized module. Its weight has a shape and dtype but no numbers."""

    def __init__(self, module: QuantModule) -> None:
        super().__init__()
        self.weight = torch.empty(module.float_shape, dtype=torch.float32, device="meta")

    def hold(self, tensors: Mapping[str, Tensor | None]) -> None:
        """Add constants to the ONNX model."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def held(self, *names: str) -> list[Tensor]:
        """The constants of these names, if present."""
        found = (self._buffers[name] for name in names)
        return [tensor for tensor in found if tensor is not None]


class Linear(Layer):
    """y = x · Wᵀ + bias."""

    codes: Tensor
    scale: Tensor

    def __init__(self, module: QuantLinear) -> None:
        super().__init__(module)
        self.rows, self.columns = module.rows, module.columns
        self.bias = module._parameters["bias"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BlockLinear(Linear):
    """MatMulNBits."""

    def __init__(self, module: QuantLinear, weight: Blocks) -> None:
        super().__init__(module)
        zero = None if weight.zero_point is None else pack(weight.zero_point, weight.bits)
        self.hold({"codes": weight.codes, "scale": weight.scale, "zero_point": zero})
        self.attributes = {
            "K": self.columns,
            "N": self.rows,
            "bits": weight.bits,
            "block_size": weight.width,
        }
        if module.activations == "dynamic":
            self.attributes["accuracy_level"] = INT8_ACTIVATIONS

    def product(self, x: Tensor) -> Tensor:
        inputs = [x, *self.held("codes", "scale", "zero_point")]
        shape = (*x.shape[:-1], self.rows)
        return call(f"{OWN}::MatMulNBits", inputs, shape, x.dtype, **self.attributes)


class IntegerLinear(Linear):
    """W [in, out] as uint8 or int8 for integer products, with a scale per output."""

    def __init__(self, module: QuantLinear, q: AffineTensor, signed: bool) -> None:
        super().__init__(module)
        zero = q.zero_point
        if zero is None and not signed:
            zero = torch.tensor([[MIDDLE]], dtype=torch.uint8)
        self.hold(
            {
                "codes": _bytes(codes_from_zero(q, 8), signed).t().contiguous(),
                "scale": q.scale.float().expand(self.rows, 1).flatten().contiguous(),
                "zero_point": None
                if zero is None
                else _bytes(zero, signed).expand(self.rows, 1).flatten().contiguous(),
            }
        )


def _bytes(codes: UInt8[Tensor, "..."], signed: bool) -> Shaped[Tensor, "..."]:
    """The uint8 codes, or if `signed` the int8 codes, which are lower by 128."""
    return (codes ^ MIDDLE).view(torch.int8) if signed else codes


class DynamicLinear(IntegerLinear):
    """Activations become int8 with a scale per token, computed at run time:

    scale = max |x| / 127,    code = rint(x · (127 / max |x|)) + 128

    Both programs have a product of codes with one scale only, so each token is divided by its
    scale before the product, and multiplied by it afterwards.
    """

    one: Tensor
    levels: Tensor
    middle: Tensor

    def __init__(self, module: QuantLinear, q: AffineTensor, signed: bool) -> None:
        super().__init__(module, q, signed)
        middle = torch.tensor(MIDDLE, dtype=torch.uint8)
        self.hold({"middle": middle, "one": torch.tensor(1.0), "levels": torch.tensor(LEVELS)})

    def product(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp(min=TINY)
        form = [x * (self.levels / largest), self.one, self.middle]
        codes = call("QuantizeLinear", form, x.shape, torch.uint8)
        inputs = [codes, *self.held("codes", "one", "scale", "middle", "zero_point")]
        shape = (*x.shape[:-1], self.rows)
        sums = call(f"{OWN}::MatMulIntegerToFloat", inputs, shape, x.dtype)
        return sums * (largest / self.levels)


class StaticLinear(IntegerLinear):
    """Activations become int8 with one fixed scale."""

    def __init__(self, module: QuantLinear, q: AffineTensor, signed: bool) -> None:
        super().__init__(module, q, signed)
        self.activations = Rounded(module.static_scales()[0])

    def product(self, x: Tensor) -> Tensor:
        held = self.held("codes", "scale", "zero_point")
        weight = call("DequantizeLinear", held, self.codes.shape, x.dtype, axis=1)
        return self.activations(x) @ weight


class Rounded(nn.Module):
    """x rounded to int8 codes with one scale: QuantizeLinear and DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, static: StaticScale) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(static.scale, dtype=torch.float32))
        zero = torch.tensor(static.zero_point + MIDDLE, dtype=torch.uint8)
        self.register_buffer("zero_point", zero)

    def forward(self, x: Tensor) -> Tensor:
        form = [self.scale, self.zero_point]
        codes = call("QuantizeLinear", [x, *form], x.shape, torch.uint8)
        return call("DequantizeLinear", [codes, *form], x.shape, x.dtype)


class BlockEmbedding(Layer):
    """GatherBlockQuantized."""

    codes: Tensor
    scale: Tensor

    def __init__(self, module: QuantEmbedding, weight: Blocks) -> None:
        super().__init__(module)
        self.factor = module.embed_scale, module.rounds_scale
        self.columns, self.width = weight.columns, weight.width
        zero = None if weight.zero_point is None else weight.zero_point[..., None]
        self.hold({"codes": weight.codes, "scale": weight.scale[..., None], "zero_point": zero})
        self.attributes = {
            "bits": weight.bits,
            "block_size": weight.width,
            "gather_axis": 0,
            "quantize_axis": 2,
        }

    def forward(self, ids: Tensor) -> Tensor:
        inputs = [self.codes, ids, *self.held("scale", "zero_point")]
        shape = (*ids.shape, self.scale.shape[1], self.width)
        name = f"{OWN}::GatherBlockQuantized"
        rows = call(name, inputs, shape, torch.float32, **self.attributes)
        return scaled(rows.flatten(-2)[..., : self.columns], *self.factor)


def layer_for(module: QuantModule, blocks: dict[QuantModule, Blocks], signed: bool) -> nn.Module:
    """The replacement of `module`, whose layout must be supported (`misfit`). blocks: converted
    weights by owner, so that a tied weight is written once. signed: weights of int8 products are
    int8."""
    q = module.stored_weight
    assert isinstance(q, AffineTensor)

    def weight() -> Blocks:
        owner = module.owner
        if owner not in blocks:
            blocks[owner] = to_blocks(q)
        return blocks[owner]

    if isinstance(module, QuantEmbedding):
        return BlockEmbedding(module, weight())
    assert isinstance(module, QuantLinear)
    rows = q.granularity.group_size is None
    static = module.static_scales()
    if module.activations == "float" or not rows:
        layer: nn.Module = BlockLinear(module, weight())
        layer = nn.Sequential(Rounded(static[0]), layer) if static else layer
    else:
        layer = (StaticLinear if static else DynamicLinear)(module, q, signed)
    if isinstance(module, RequantizedLinear):
        layer = nn.Sequential(layer, Rounded(static[1]))
    return layer
