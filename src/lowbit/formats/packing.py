"""Codes <-> bytes, for any bit width.

A row of n codes of b bits is one bit string, least significant bit first: code i occupies bits
b·i … b·i + b − 1 of the row, and bit j of the row is bit j mod 8 of byte j // 8. The row is padded
with zero bits to whole bytes, so it takes ceil(n·b / 8) bytes.

As few codes as fill whole bytes are one word with a code in each of its bytes: 8 codes of 3 bits
are a 64-bit word, 2 codes of 4 bits a 16-bit word. Halving steps push them together into the low
end of the word (pairs of bytes, then of 16-bit and of 32-bit lanes), of which the used bytes are
stored; unpacking pulls them apart again. Words are read little-endian, as on every processor
that PyTorch supports.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import pad

# Bytes in a word -> its dtype and the lanes of its halving steps, in bits.
WORDS = {8: (torch.int64, (8, 16, 32)), 4: (torch.int32, (8, 16)), 2: (torch.int16, (8,))}


def packed_width(n: int, bits: int) -> int:
    """Bytes that n codes of `bits` bits take."""
    return -(-n * bits // 8)


def pack(codes: UInt8[Tensor, "*rows n"], bits: int) -> UInt8[Tensor, "*rows packed"]:
    """Pack codes 0 … 2^bits − 1 of each row into ceil(n·bits/8) bytes. Codes are not masked."""
    if bits == 8:
        return codes.contiguous()
    n = codes.shape[-1]
    if not codes.numel():  # whose strides may be any, and fit no view
        return codes.new_empty(*codes.shape[:-1], packed_width(n, bits))
    size = word_size(bits)
    dtype, lanes = WORDS[size]
    word = pad(codes, (0, -n % size)).contiguous().view(dtype)
    for lane in lanes:
        high = word >> lane & every_other(lane, lane, size)
        word = word.sub(high, alpha=(1 << lane) - (1 << lane * bits // 8))
    used = size * bits // 8
    if used == 1:  # a conversion, which is vectorized, keeps the low byte
        packed = word.to(torch.uint8)
    else:
        packed = word.unsqueeze(-1).view(torch.uint8)[..., :used].flatten(-2)
    return packed[..., : packed_width(n, bits)].contiguous()


def unpack(packed: UInt8[Tensor, "*rows packed"], bits: int, n: int) -> UInt8[Tensor, "*rows n"]:
    """The first n codes of each row: the inverse of `pack`."""
    if bits == 8:
        return packed[..., :n]
    size = word_size(bits)
    dtype, lanes = WORDS[size]
    used = size * bits // 8
    if used == 1:
        word = packed.to(dtype)
    else:
        packed = pad(packed, (0, -packed.shape[-1] % used)).unflatten(-1, (-1, used))
        word = pad(packed, (0, size - used)).view(dtype).squeeze(-1)
    for lane in reversed(lanes):
        field = lane * bits // 8
        high = word >> field & every_other(lane, field, size)
        word = word.add(high, alpha=(1 << lane) - (1 << field))
    return word.unsqueeze(-1).view(torch.uint8).flatten(-2)[..., :n]


def word_size(bits: int) -> int:
    """How many codes of `bits` bits, at the least, fill whole bytes."""
    return 8 // (bits & -bits)


def every_other(lane: int, width: int, size: int) -> int:
    """A mask for words of `size` bytes: the low `width` bits of every second `lane`-bit lane."""
    return sum(((1 << width) - 1) << at for at in range(0, 8 * size, 2 * lane))
