"""AWQ checkpoints in the gemm layout, as AutoAWQ and llm-awq's successors write them.

    qweight  int32 [in, out/8]       eight codes of 4 bits a word, of neighbouring outputs in the
                                     order 0 2 4 6 1 3 5 7 from the least significant bit on
    qzeros   int32 [groups, out/8]   zero points likewise
    scales   float [groups, out]

    w[o, i] = scales[g, o] · (q[i, o] − z[g, o]),  g = i // group_size

The layout is that of AutoAWQ's `WQLinear_GEMM`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats.packing import pack
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.foreign_folder import (
    ForeignFolder,
    Found,
    Kind,
    Module,
    folder_reader,
    granularity,
)
from lowbit.interop.held_weight import HeldWeight

BITS = 4
CODES = 32 // BITS  # in a word
# The place in a word of each of eight neighbouring outputs.
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def find(folder: ForeignFolder) -> Found:
    """The weights of a folder. Raises InputError."""
    bits = folder.option("bits", int, None) or folder.option("w_bit", int, BITS)
    version = folder.option("version", str, "gemm").lower()
    if bits != BITS or version != "gemm":
        raise InputError(
            f"{folder.path} has AWQ weights of {bits} bits in the layout {version}; lowbit reads"
            f" {BITS} bits in the layout gemm"
        )
    told = folder.option("group_size", int, None) or folder.option("q_group_size", int, -1)
    modules = folder.modules("qweight", ("qzeros", "scales"))
    scaled = [n for n in folder.tensors if n.endswith(".scales") and n[:-7] not in modules]
    if scaled:
        raise InputError(
            f"{scaled[0]} scales activations of a module that is not a matrix, which transformers"
            " does not support: quantize the float model"
        )
    weights = {}
    for name, module in modules.items():
        weights[name] = Weight(module, told).foreign()
    return Found(weights, modules, f"an AWQ checkpoint of {BITS} bits")


class Weight(HeldWeight):
    """One weight [out, in]."""

    def __init__(self, module: Module, told: int) -> None:
        self.module = module
        columns, self.words = module.matrix("qweight")
        self.shape = self.words * CODES, columns
        self.groups, _ = module.matrix("scales")
        self.granularity = granularity(columns, self.groups, told, module.name)

    def parameters(self) -> AffineParameters:
        scale = self.module.read("scales", (self.groups, self.shape[0]), *FLOATS)
        zeros = _codes(self.module.read("qzeros", (self.groups, self.words), torch.int32))
        parameters = scale.t().contiguous(), zeros.t().contiguous()
        return AffineParameters.of(*parameters, BITS, self.granularity)

    def codes(self) -> Tensor:
        columns = self.shape[1]
        codes = _codes(self.module.read("qweight", (columns, self.words), torch.int32))
        return pack(codes.t().contiguous(), BITS)


def _codes(words: Tensor) -> Tensor:
    """uint8 [n, 8·words], in the order of the outputs."""
    nibbles = words.contiguous().view(torch.uint8)  # little-endian: the lowest first
    apart = torch.stack((nibbles & 15, nibbles >> 4), -1).unflatten(1, (-1, 4)).flatten(-2)
    return apart[..., list(PLACES)].flatten(1)


def _says(told: Mapping[str, object]) -> bool:
    return told.get("quant_method") == "awq" or told.get("packing_format") == "auto_round:auto_awq"


READER = folder_reader(Kind(_says, "quant_config.json"), find)
