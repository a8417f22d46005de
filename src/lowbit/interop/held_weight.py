"""A weight of another program that the affine format holds exactly, and how it is read.

A format says of a module its shape, scales and zero points, and codes; the rest is here.
"""

from abc import ABC, abstractmethod

from jaxtyping import UInt8
from torch import Tensor

from lowbit.conversion.streamed_load import QuantizedInFile
from lowbit.formats import AffineTensor
from lowbit.interop.affine_parameters import AffineParameters
from lowbit.interop.door import ForeignWeight
from lowbit.interop.foreign_folder import Module


class HeldWeight(ABC):
    """One weight [out, in]. Raises InputError where its tensors do not go together."""

    module: Module
    shape: tuple[int, int]

    @abstractmethod
    def parameters(self) -> AffineParameters:
        """Its scales and zero points."""

    @abstractmethod
    def codes(self) -> UInt8[Tensor, "out packed"]:
        """Its codes from 0 on, packed as the affine format has them."""

    def read(self) -> AffineTensor:
        """The weight as lowbit stores it."""
        return self.parameters().hold(self.codes(), self.shape[1])

    def foreign(self, activations: str = "float") -> ForeignWeight:
        """The same, to be read later. Its parameters are read now, as the layout depends on them,
        and once more with the codes: those of a whole checkpoint are not kept in memory."""
        layout = self.parameters().layout
        file = QuantizedInFile(self.shape, self.module.nbytes, self.read)
        return ForeignWeight(file, layout, activations)
