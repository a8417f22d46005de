"""lowbit: Hugging Face transformers in 8 to 1 bits that stay Hugging Face models.

After `import lowbit`, transformers loads what it saved. torch and transformers are imported when a
public name is used first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowbit.import_hook import import_after
from lowbit.launch import launched, leave_at_once

if TYPE_CHECKING:
    from lowbit.public import *

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


def __getattr__(name: str) -> Any:
    """A public name, on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module("lowbit.public"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if launched():
    leave_at_once()
import_after(
    {
        "transformers.quantizers.auto": "lowbit.conversion.config_registration",
        "transformers.modeling_utils": "lowbit.conversion.registration",
    }
)
