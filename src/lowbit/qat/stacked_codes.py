"""Binary codes of a scheme with parts while a weight trains: those of each part (codes.py) side by
side, and one weight again in what comes out.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowbit.formats import StackedTensor
from lowbit.qat.codes import Codes, Mode
from lowbit.qat.weights import StraightThrough
from lowbit.schemes import Binary, Scheme


class StackedCodes(StraightThrough):
    """As `Codes`; all parts are in one mode."""

    def __init__(self, scheme: Scheme, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(scheme, weight)
        self.sizes = list(scheme.part_rows(len(weight)))
        # Training is resumed by this name, which the first scheme with parts gave it.
        self.clusters = nn.ModuleList(map(Codes, scheme.parts, weight.split(self.sizes)))

    @property
    def mode(self) -> Mode:
        first = self.clusters[0]
        assert isinstance(first, Codes)
        return first.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        for codes in self.clusters:
            assert isinstance(codes, Codes)
            codes.mode = mode

    def stored(self, weight: Float[Tensor, "out in"]) -> StackedTensor:
        return StackedTensor(tuple(codes.stored(rows) for codes, rows in self._each(weight)))

    def project(self, weight: Float[Tensor, "out in"]) -> None:
        for codes, rows in self._each(weight):
            codes.project(rows)

    def sync(self, weight: Float[Tensor, "out in"]) -> None:
        for codes, rows in self._each(weight):
            codes.sync(rows)

    def settle(self, weight: Float[Tensor, "out in"]) -> None:
        for codes, rows in self._each(weight):
            codes.settle(rows)

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        if self.mode is Mode.FREE:
            return weight
        return torch.cat([codes(rows) for codes, rows in self._each(weight)])

    def _each(self, weight: Float[Tensor, "out in"]) -> Iterator[tuple[Codes, Tensor]]:
        """Every part's codes and rows; these are views."""
        for codes, rows in zip(self.clusters, weight.split(self.sizes), strict=True):
            assert isinstance(codes, Codes)
            yield codes, rows


def has_codes(scheme: Scheme) -> bool:
    """Whether `codes_for` has some for it."""
    return all(isinstance(part, Binary) for part in scheme.parts or (scheme,))


def codes_for(scheme: Scheme, weight: Float[Tensor, "out in"]) -> Codes | StackedCodes:
    """The codes of one weight. Raises UsageError for a scheme that has none."""
    return StackedCodes(scheme, weight) if scheme.parts else Codes(scheme, weight)
