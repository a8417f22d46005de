"""lowbit: Hugging Face transformers in 8 to 1 bits that stay Hugging Face models.

Importing it lets transformers load what it saved.
"""

from lowbit import attention
from lowbit.accounting import Footprint, footprint
from lowbit.attached import restore_float
from lowbit.decoding import generate
from lowbit.errors import InputError, LowbitError, UsageError
from lowbit.formats import AffineTensor, BinaryTensor, Granularity, QTensor, StackedTensor
from lowbit.hub import LowbitConfig, register
from lowbit.inplace import Result
from lowbit.inspect import explain
from lowbit.kernels.ops import dequantize
from lowbit.planes import use_planes
from lowbit.qat.prepare import QatOptions, finish_qat, prepare_qat
from lowbit.quantization import quantize
from lowbit.recipe import KEEP, PRESETS, Recipe, Rule
from lowbit.saving import load, save
from lowbit.schemes import Absmax, Binary, Clustered, Scheme, ZeroPoint
from lowbit.simulate import simulate
from lowbit.stream import quantize_checkpoint
from lowbit.versions import warn_of_untested

warn_of_untested()
register()
attention.register()

__version__ = "0.1.0"
__all__ = [
    "KEEP",
    "PRESETS",
    "Absmax",
    "AffineTensor",
    "Binary",
    "BinaryTensor",
    "Clustered",
    "Footprint",
    "Granularity",
    "InputError",
    "LowbitConfig",
    "LowbitError",
    "QTensor",
    "QatOptions",
    "Recipe",
    "Result",
    "Rule",
    "Scheme",
    "StackedTensor",
    "UsageError",
    "ZeroPoint",
    "dequantize",
    "explain",
    "finish_qat",
    "footprint",
    "generate",
    "load",
    "prepare_qat",
    "quantize",
    "quantize_checkpoint",
    "restore_float",
    "save",
    "simulate",
    "use_planes",
]
