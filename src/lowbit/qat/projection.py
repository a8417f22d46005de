"""A model whose weights are projected onto binary codes while it trains: all of them at once, or
part by part.

prepare_codes(model, recipe)    fake-quantize each module that the recipe quantizes
project, sync, … of each weight, whenever a schedule says so (training/projections.py)
finish_qat(model)               the codes that are held, in their place
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.conversion.module_weights import oriented
from lowbit.conversion.recipe import Recipe
from lowbit.formats import decode
from lowbit.qat.codes import Codes, Mode
from lowbit.qat.modules import FakeQuantized
from lowbit.qat.prepare import fake_quantized, prepare_qat
from lowbit.qat.stacked_codes import StackedCodes, codes_for

# In the order in which parts are quantized: the last one that a module is in counts.
PARTS = ("embedding", "decoder", "encoder")
DECODER = re.compile(r"(^|\.)decoder\.")


@dataclass(frozen=True)
class CodedWeight:
    """A weight, once however many modules share it, and the part of the model that it is in."""

    name: str
    part: str
    module: FakeQuantized
    codes: Codes | StackedCodes

    def project(self) -> float:
        """Find the codes anew. The change ‖ŵ − w‖ / ‖w‖ of the weight w, which becomes ŵ."""
        return self._changed(self.codes.project)

    def sync(self) -> float:
        """Let what is held be what is computed with; the change, as of `project`."""
        return self._changed(self.codes.sync)

    def settle(self) -> None:
        self._rewrite(self.codes.settle)

    @torch.no_grad()
    def _changed(self, change: Callable[[Tensor], None]) -> float:
        before = self.module.matrix().detach().clone()
        self._rewrite(change)
        after = decode(self.codes.stored(self.module.matrix().detach()))
        size = float(before.norm())
        return float((after - before).norm()) / size if size else 0.0

    @torch.no_grad()
    def enter(self, mode: Mode) -> None:
        """Train in that mode from now on: before codes freeze they are those of the weight."""
        if mode is self.codes.mode:
            return
        if mode is Mode.FROZEN:
            self.sync()
        self.codes.mode = mode
        if mode is Mode.STRAIGHT:
            self.project()

    @torch.no_grad()
    def _rewrite(self, change: Callable[[Tensor], None]) -> None:
        # A transposed weight is oriented by a copy.
        matrix = self.module.matrix().detach()
        change(matrix)
        if self.module.weights.transposed:
            self.module.weight.copy_(oriented(matrix, self.module.weights))


def prepare_codes(model: PreTrainedModel, recipe: str | Path | Recipe) -> tuple[CodedWeight, ...]:
    """Put fake-quantized modules in place; everything still computes in float. Raises as
    `prepare_qat` does, and UsageError for a scheme that is not binary."""
    prepare_qat(model, recipe, quantizer=codes_for)
    found = []
    for name, module in fake_quantized(model).items():
        if not module.tied:
            codes = module.weight_quantizer
            assert isinstance(codes, Codes | StackedCodes)
            found.append(CodedWeight(name, part_of(name, module), module, codes))
    return tuple(found)


def part_of(name: str, module: FakeQuantized) -> str:
    """One of PARTS; what is in no decoder is taken for the encoder's."""
    if module.weights.kind == "embedding":
        return "embedding"
    return "decoder" if DECODER.search(name) else "encoder"
