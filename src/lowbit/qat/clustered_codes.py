"""Binary codes of a table in clusters (schemes/clustered.py) while it trains: those of each cluster
(codes.py) side by side, and one table again in what comes out.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowbit.formats import StackedTensor
from lowbit.qat.codes import Codes, Mode
from lowbit.qat.weights import Straight
from lowbit.schemes import Clustered, Scheme
from lowbit.schemes.clustered import cluster_sizes


class ClusteredCodes(Straight):
    """As `Codes`; all clusters are in one mode."""

    def __init__(self, scheme: Clustered, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(scheme, weight)
        self.sizes = cluster_sizes(len(weight), scheme.clusters, scheme.ratio)
        clusters = enumerate(weight.split(self.sizes))
        self.clusters = nn.ModuleList(Codes(scheme.of_cluster(i), rows) for i, rows in clusters)

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
        """Every cluster's codes and rows; these are views."""
        for codes, rows in zip(self.clusters, weight.split(self.sizes), strict=True):
            assert isinstance(codes, Codes)
            yield codes, rows


def codes_for(scheme: Scheme, weight: Float[Tensor, "out in"]) -> Codes | ClusteredCodes:
    """The codes of one weight. Raises UsageError for a scheme that has none."""
    if isinstance(scheme, Clustered):
        return ClusteredCodes(scheme, weight)
    return Codes(scheme, weight)
