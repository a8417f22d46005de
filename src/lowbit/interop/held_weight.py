"""A weight of another program that the affine format represents exactly.

A format implements the shape, the scales and zero points, and the codes; the rest is here.
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
    """One weight [out, in]. Raises InputError if its tensors do not match."""

    module: Module
    shape: tuple[int, int]

    @abstractmethod
    def parameters(self) -> AffineParameters:
        """The scales and zero points."""

    @abstractmethod
    def codes(self) -> UInt8[Tensor, "out packed"]:
        """The codes from 0 on, packed as in the affine format."""

    def read(self) -> AffineTensor:
        """Read the weight as a quantized tensor."""
        return self.parameters().hold(self.codes(), self.shape[1])

    def foreign(self, activations: str = "float") -> ForeignWeight:
        """The unread weight. Its parameters are read now, because the layout depends on them, and
        again with the codes, so that memory does not hold those of a whole checkpoint."""
        layout = self.parameters().layout
        file = QuantizedInFile(self.shape, self.module.nbytes, self.read)
        return ForeignWeight(file, layout, activations)
