"""The public names. Importing them lets transformers load what lowbit saved."""

from lowbit.checkpoint.hashes import verify
from lowbit.conversion.apply import Result
from lowbit.conversion.attach import restore_float
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.conversion.hf_quantizer import register
from lowbit.conversion.planes import use_planes
from lowbit.conversion.recipe import KEEP, PRESETS, Recipe, Rule
from lowbit.conversion.save import load, save
from lowbit.conversion.simulate import simulate
from lowbit.decoding import generate
from lowbit.errors import InputError, LowbitError, UsageError
from lowbit.formats import AffineTensor, BinaryTensor, Granularity, QTensor, StackedTensor
from lowbit.inspect import explain
from lowbit.interop.handing_over import dequantize_checkpoint, export_checkpoint
from lowbit.interop.taking_over import import_checkpoint
from lowbit.kernels.attention import hf_attention as attention
from lowbit.kernels.ops import dequantize
from lowbit.nn import experts
from lowbit.qat.prepare import QatOptions, finish_qat, prepare_qat
from lowbit.quantize.calibrated import quantize_calibrated
from lowbit.quantize.in_memory import quantize
from lowbit.quantize.streaming import quantize_checkpoint
from lowbit.runtime.compiled import compile, save_programs
from lowbit.schemes import Absmax, Binary, Clustered, KQuant, Scheme, ZeroPoint
from lowbit.versions import warn_of_untested

warn_of_untested()
register()
attention.register()
experts.register()

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
    "KQuant",
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
    "compile",
    "dequantize",
    "dequantize_checkpoint",
    "explain",
    "export_checkpoint",
    "finish_qat",
    "footprint",
    "generate",
    "import_checkpoint",
    "load",
    "prepare_qat",
    "quantize",
    "quantize_calibrated",
    "quantize_checkpoint",
    "restore_float",
    "save",
    "save_programs",
    "simulate",
    "use_planes",
    "verify",
]
