"""GPTQ checkpoints, as GPTQModel, AutoGPTQ and AutoRound write them.

    qweight  int32 [in·bits/32, out]       codes 0 … 2^bits − 1 of each column, bit-contiguous down
                                           the inputs, least significant bit first
    qzeros   int32 [groups, out·bits/32]   zero points likewise along the outputs: z − 1 in version
                                           1 of the format, z in version 2
    scales   float [groups, out]
    g_idx    int32 [in]                    the group of each input, where inputs were reordered

    w[o, i] = scales[g, o] · (q[i, o] − z[g, o]),  g = g_idx[i]

The words of a column are, byte for byte, the packed codes of a row of the affine format. The layout
is that of GPTQModel's `PackableQuantLinear`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.formats.packing import unpack
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.foreign_folder import (
    Decoded,
    ForeignFolder,
    Found,
    Kind,
    Module,
    folder_reader,
    granularity,
)
from lowbit.interop.held_weight import HeldWeight

# What is added to stored zero points, by the format's own name of its version.
VERSIONS = {
    "gptq": 1,
    "gptq_v2": 0,
    "auto_round:auto_gptq": 1,
    "auto_round:gptqmodel": 0,
    "auto_round": 0,
}
BITS = (2, 3, 4, 8)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
REORDERED = "quantized in another order of its inputs (desc_act)"


def find(folder: ForeignFolder) -> Found:
    """The weights of a folder. Raises InputError."""
    version = folder.option("checkpoint_format", str, None)
    version = version or folder.option("packing_format", str, "gptq")
    if version not in VERSIONS:
        raise InputError(
            f"{folder.path} has the GPTQ layout {version!r}; lowbit reads {', '.join(VERSIONS)}"
        )
    bits = folder.option("bits", int, 4)
    told = folder.option("group_size", int, -1)
    modules = folder.modules("qweight", ("qzeros", "scales", "g_idx"))
    weights, decoded = {}, {}
    for name, module in modules.items():
        weight = Weight(module, bits, told, VERSIONS[version])
        if weight.is_reordered():
            dtype = module.dtype("scales")
            decoded[name] = Decoded(weight.shape, dtype, weight.decoded), REORDERED
        else:
            weights[name] = weight.foreign()
    return Found(weights, modules, _told(folder.quantization, bits), decoded)


class Weight(HeldWeight):
    """One weight [out, in]."""

    def __init__(self, module: Module, bits: int, told: int, offset: int) -> None:
        self.module, self.offset = module, offset
        words, rows = module.matrix("qweight")
        columns = module.shape("g_idx")[0] if "g_idx" in module else words * 32 // max(1, bits)
        self.shape = rows, columns
        # Some modules may have other bits than the config says of most.
        self.bits = words * 32 // max(1, columns)
        if self.bits not in BITS or self.bits * columns != words * 32:
            raise InputError(
                f"{module.name}.qweight holds {words} words for {columns} inputs, which does not"
                f" match codes of {', '.join(map(str, BITS))} bits"
            )
        self.groups, _ = module.matrix("scales")
        self.granularity = granularity(columns, self.groups, told, module.name)

    def scales(self) -> Tensor:
        """[groups, out], as stored."""
        return self.module.read("scales", (self.groups, self.shape[0]), *FLOATS)

    def zero_points(self) -> Tensor:
        """uint8 [out, groups]. Raises InputError for one that is no code."""
        rows = self.shape[0]
        if rows * self.bits % 32:
            raise InputError(
                f"{self.module.name} has {rows} outputs, whose zero points of {self.bits} bits do"
                " not fill whole words of 32 bits"
            )
        words = self.module.read("qzeros", (self.groups, rows * self.bits // 32), torch.int32)
        stored = unpack(words.contiguous().view(torch.uint8), self.bits, rows)
        if self.offset and bool((stored == (1 << self.bits) - 1).any()):
            raise InputError(
                f"{self.module.name}.qzeros holds {(1 << self.bits) - 1}, which programs read as"
                " different zero points (version 1 of the GPTQ format has no zero point 0): write"
                " the model in version 2, gptq_v2"
            )
        return (stored + self.offset).t().contiguous()

    def groups_of_inputs(self) -> Tensor:
        """The group of each input [in]."""
        columns = self.shape[1]
        if "g_idx" not in self.module:
            return torch.arange(columns) // self.granularity.width(columns)
        groups = self.module.read("g_idx", (columns,), torch.int32, torch.int64).long()
        low, high = torch.aminmax(groups)
        if low < 0 or high >= self.groups:
            raise InputError(f"{self.module.name}.g_idx names groups {int(low)} … {int(high)}")
        return groups

    def is_reordered(self) -> bool:
        """Whether a group is anything but consecutive inputs."""
        columns = self.shape[1]
        expected = torch.arange(columns) // self.granularity.width(columns)
        return not torch.equal(self.groups_of_inputs(), expected)

    def codes(self) -> Tensor:
        rows, columns = self.shape
        words = self.module.read("qweight", (columns * self.bits // 32, rows), torch.int32)
        return words.t().contiguous().view(torch.uint8)

    def parameters(self) -> AffineParameters:
        scale = self.scales().t().contiguous()
        return AffineParameters.of(scale, self.zero_points(), self.bits, self.granularity)

    def decoded(self) -> Tensor:
        """The weight as floats, in float32, whatever the order of its inputs."""
        codes = unpack(self.codes(), self.bits, self.shape[1]).float()
        groups = self.groups_of_inputs()
        scales, zero_points = self.scales().t().float(), self.zero_points().float()
        return (codes - zero_points[:, groups]) * scales[:, groups]


def _told(quantization: Mapping[str, object], bits: int) -> str:
    meta = quantization.get("meta")
    producer = meta.get("quantizer") if isinstance(meta, dict) else None
    named = producer[0] if isinstance(producer, list) and producer else None
    by = named or quantization.get("provider") or "an unnamed program"
    return f"a GPTQ checkpoint of {bits} bits, written by {by}"


def _says(told: Mapping[str, object]) -> bool:
    packed_so = told.get("packing_format") in VERSIONS
    return told.get("quant_method") == "gptq" or packed_so


READER = folder_reader(Kind(_says, "quantize_config.json"), find)
