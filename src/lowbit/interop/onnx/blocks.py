"""Affine codes in the blocks that MatMulNBits and GatherBlockQuantized read.

    codes        uint8 [out, blocks, block · bits / 8]    least significant bits first
    scale        float32 [out, blocks]
    zero_point   uint8 [out, blocks]                      2^(bits − 1) if absent

    w = scale · (code − zero point)

bits is 2, 4 or 8, and a block a power of two of at least 16 consecutive inputs. Codes of other
widths are stored in the next wider one; a group, channel or tensor is as many blocks as fit, each
with the same scale. Source: the schema of com.microsoft.MatMulNBits in ONNX Runtime.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad

from lowbit.formats import AffineLayout, AffineTensor
from lowbit.formats.packing import pack, unpack

BITS = (2, 4, 8)
SMALLEST, LARGEST = 16, 256  # blocks, in inputs


@dataclass(frozen=True)
class Blocks:
    """A weight [out, columns] in the layout of the operators, with blocks of `width` inputs."""

    codes: UInt8[Tensor, "out blocks packed"]
    scale: Float32[Tensor, "out blocks"]
    zero_point: UInt8[Tensor, "out blocks"] | None
    bits: int
    width: int
    columns: int


def stored_bits(bits: int) -> int:
    """The bits of stored codes: the next supported width."""
    return next(known for known in BITS if known >= bits)


def block_width(layout: AffineLayout, columns: int) -> int | None:
    """The inputs per block; None if no block size divides a group."""
    size = layout.granularity.group_size
    if size is not None:
        width = size & -size
        return None if width < SMALLEST else width
    # For a channel, the widest block that divides the inputs.
    width = min(columns & -columns, LARGEST)
    return width if width >= SMALLEST else SMALLEST


def codes_from_zero(q: AffineTensor, bits: int) -> UInt8[Tensor, "out in"]:
    """The codes, one a byte, from 0 on; symmetric ones around 2^(bits − 1) for the wider `bits`."""
    rows, columns = q.shape
    codes = (
        q.codes.view(torch.uint8) ^ 0x80 if q.layout.signed else unpack(q.codes, q.bits, columns)
    )
    if q.zero_point is None:
        codes = codes + ((1 << (bits - 1)) - (1 << (q.bits - 1)))
    return codes


def to_blocks(q: AffineTensor) -> Blocks:
    """The weight in blocks. Its layout must have them (`block_width`)."""
    rows, columns = q.shape
    bits, width = stored_bits(q.bits), block_width(q.layout, columns)
    assert width is not None
    blocks = -(-columns // width)
    codes = pad(codes_from_zero(q, bits), (0, blocks * width - columns), value=1 << (bits - 1))
    scale = by_block(q.scale.float(), q, blocks, width)
    zero = None if q.zero_point is None else by_block(q.zero_point, q, blocks, width)
    return Blocks(
        pack(codes, bits).unflatten(1, (blocks, -1)).contiguous(),
        scale,
        zero,
        bits,
        width,
        columns,
    )


def by_block(
    parameter: Shaped[Tensor, "units groups"], q: AffineTensor, blocks: int, width: int
) -> Shaped[Tensor, "out blocks"]:
    """A parameter of a group, given for each of its blocks."""
    size = q.granularity.group_size
    repeats = blocks if size is None else size // width
    each = parameter.repeat_interleave(repeats, 1)[:, :blocks]
    return each.expand(q.shape[0], -1).contiguous()
