"""Makes transformers know lowbit's config, and where its quantizer is. `import lowbit` has it
imported after `transformers.quantizers.auto`: programs that read a config need no model."""

from typing import Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
)

from lowbit.checkpoint.foreign import METHOD
from lowbit.conversion.config import LowbitConfig


def _quantizer(config: LowbitConfig, **options: Any) -> Any:
    """The quantizer, of a program that asks for it before it imports a model."""
    from lowbit.conversion.hf_quantizer import LowbitQuantizer

    return LowbitQuantizer(config, **options)


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(LowbitConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, _quantizer)
