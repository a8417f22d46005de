"""Join experts that another program quantized separately to one lowbit weight.

Codes do not change. All experts get the same form of parameters: the widest dtype of scales, zero
points if a matrix has any, and scales per channel if concatenated matrices have one scale each.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.conversion.rows_of_experts import rows_of_experts
from lowbit.conversion.streamed_load import QuantizedInFile, names_in_model
from lowbit.errors import InputError
from lowbit.formats import CHANNEL, TENSOR, AffineLayout, AffineTensor, ExpertsLayout, ExpertsTensor
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.door import ForeignWeight, Source
from lowbit.interop.foreign_folder import Decoded
from lowbit.kernels.ops import dequantize

UNLIKE = "experts that are quantized in different ways"


def together(model: PreTrainedModel, source: Source, decoding: bool) -> Source:
    """The source with experts joined as in the model. If experts are quantized differently, or only
    some are quantized, they are decoded; raises InputError for them unless `decoding`."""
    weights, floats, unheld = dict(source.weights), dict(source.floats), dict(source.unheld)
    places = names_in_model(model, (*floats, *weights))
    for name, experts in rows_of_experts(places).items():
        every = [stored for rows in experts for stored in rows]
        if not any(stored in weights for stored in every):
            continue
        parts = [[weights.get(stored) for stored in rows] for rows in experts]
        if (joined := _joined(parts)) is not None:
            weights[name] = joined
        elif decoding:
            own = {stored: weights[stored] for stored in every if stored in weights}
            floats |= {stored: _decoded(weight, source, stored) for stored, weight in own.items()}
            unheld |= dict.fromkeys(own, UNLIKE)
        else:
            raise InputError(
                f"the experts of {name} are quantized in different ways, or only some of them, so"
                " lowbit cannot keep their codes; --requantize RECIPE decodes and quantizes them"
                " again"
            )
        for stored in every:
            weights.pop(stored, None)
    return replace(source, weights=weights, floats=floats, unheld=unheld)


def _joined(experts: Sequence[Sequence[ForeignWeight | None]]) -> ForeignWeight | None:
    """The weights of all experts as one weight, with the matrices of an expert concatenated; None
    if they do not match."""
    parts = [part for rows in experts for part in rows if part is not None]
    count, each = len(experts), len(experts[0])
    layouts = [part.layout for part in parts if isinstance(part.layout, AffineLayout)]
    shapes = {tuple(None if p is None else p.file.shape for p in rows) for rows in experts}
    kinds = {
        (layout.bits, layout.granularity, layout.offset, layout.two_level) for layout in layouts
    }
    activations = {part.activations for part in parts}
    if not len(layouts) == count * each or max(len(shapes), len(kinds), len(activations)) > 1:
        return None
    ((bits, granularity, offset, two_level),) = kinds
    if offset or two_level is not None or len({part.file.shape[1] for part in parts}) > 1:
        return None
    common = AffineLayout(
        bits,
        CHANNEL if granularity == TENSOR and each > 1 else granularity,
        any(layout.zero_point for layout in layouts),
        max((layout.scale_dtype for layout in layouts), key=lambda dtype: dtype.itemsize),
        signed_scale=any(layout.signed_scale for layout in layouts),
    )

    def read() -> ExpertsTensor:
        under = (_under([_said(_tensor(p), common) for p in rows], common) for rows in experts)
        return ExpertsTensor.of(under, count)

    rows = sum(part.file.shape[0] for part in parts)
    size = sum(part.file.nbytes for part in parts)
    file = QuantizedInFile((rows, parts[0].file.shape[1]), size, read)
    return ForeignWeight(file, ExpertsLayout(count, common), activations.pop())


def _said(q: AffineTensor, layout: AffineLayout) -> AffineTensor:
    """The same weight in a more general layout."""
    assert isinstance(q.scale, Tensor)  # plain scales, not in two levels
    scale, zero_point = q.scale.to(layout.scale_dtype), q.zero_point
    if layout.zero_point and zero_point is None:
        zero_point = torch.full_like(scale, 1 << (q.bits - 1), dtype=torch.uint8)
    if layout.granularity == CHANNEL:
        scale = scale.expand(q.shape[0], 1)
        zero_point = None if zero_point is None else zero_point.expand(q.shape[0], 1)
    codes = q.codes.view(torch.uint8) ^ 0x80 if q.layout.signed else q.codes
    own = scale, zero_point, q.bits, layout.granularity, layout.signed_scale
    return AffineParameters(*own).hold(codes, q.shape[1])


def _under(parts: Sequence[AffineTensor], layout: AffineLayout) -> AffineTensor:
    """Concatenate weights of one layout along their rows."""
    stored = [part.tensors() for part in parts]
    joined = {name: torch.cat([each[name] for each in stored]) for name in layout.names}
    return layout.assemble(joined, parts[0].shape[1])


def _tensor(part: ForeignWeight | None) -> AffineTensor:
    assert part is not None
    return cast(AffineTensor, part.file.read())


def _decoded(weight: ForeignWeight, source: Source, stored: str) -> Decoded:
    dtype = source.checkpoint.config.dtype or torch.float32
    return Decoded(weight.file.shape, dtype, lambda: dequantize(_tensor(weight), torch.float32))
