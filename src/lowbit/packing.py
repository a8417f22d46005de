"""Codes <-> bytes, for any bit width.

A row of n codes of b bits is one bit string, least significant bit first: code i occupies bits
b·i … b·i + b − 1 of the row, and bit j of the row is bit j mod 8 of byte j // 8. The row is padded
with zero bits to whole bytes, so it takes ceil(n·b / 8) bytes.

Eight codes are one 64-bit word with a code in each byte. Three halving steps push them together
into the low 8·b bits (pairs of bytes, of 16-bit and of 32-bit lanes), of which b bytes are
stored; unpacking pulls them apart again. Words are read little-endian, as on every processor
that PyTorch supports.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import pad

LANES = (8, 16, 32)


def packed_width(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take."""
    return -(-n * bits // 8)


def pack(codes: UInt8[Tensor, "*rows n"], bits: int) -> UInt8[Tensor, "*rows packed"]:
    """Pack codes 0 … 2^bits − 1 of each row into ceil(n·bits/8) bytes. Codes are not masked."""
    if bits == 8:
        return codes.contiguous()
    n = codes.shape[-1]
    word = pad(codes, (0, -n % 8)).contiguous().view(torch.int64)
    for lane in LANES:
        low = _every_other(lane, lane)
        word = (word & low) | ((word >> lane & low) << (lane * bits // 8))
    packed = word.unsqueeze(-1).view(torch.uint8)[..., :bits].flatten(-2)
    return packed[..., : packed_width(n, bits)].contiguous()


def unpack(packed: UInt8[Tensor, "*rows packed"], bits: int, n: int) -> UInt8[Tensor, "*rows n"]:
    """The first n codes of each row: the inverse of `pack`."""
    if bits == 8:
        return packed[..., :n]
    packed = pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    word = pad(packed, (0, 8 - bits)).view(torch.int64).squeeze(-1)
    for lane in reversed(LANES):
        field = lane * bits // 8
        low = _every_other(lane, field)
        word = (word & low) | ((word >> field & low) << lane)
    return word.unsqueeze(-1).view(torch.uint8).flatten(-2)[..., :n]


def _every_other(lane: int, width: int) -> int:
    """A 64-bit mask: the low `width` bits of every second `lane`-bit lane."""
    return sum(((1 << width) - 1) << at for at in range(0, 64, 2 * lane))
