"""Register lowbit's config and a lazy quantizer with transformers. `import lowbit` imports this
module after `transformers.quantizers.auto`, so that a program can read a config without models."""

from typing import Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
)

from lowbit.checkpoint.foreign import METHOD
from lowbit.conversion.config import LowbitConfig


def _quantizer(config: LowbitConfig, **options: Any) -> Any:
    """The quantizer, for a program that needs it before it imports a model."""
    from lowbit.conversion.hf_quantizer import LowbitQuantizer

    return LowbitQuantizer(config, **options)


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(LowbitConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, _quantizer)
