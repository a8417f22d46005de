"""Whether a training that is asked for products in bfloat16 computes them."""

import platform
from collections.abc import Iterator

import torch


def has_products() -> bool:
    """Whether this machine multiplies bfloat16 numbers. Without such instructions torch emulates
    the products: on a processor with AVX2 alone a step takes 15 times as long as in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def is_used(asked: bool) -> bool:
    return asked and has_products()


def unused(asked: bool) -> Iterator[str]:
    """What is said if it is asked for and not used."""
    if asked and not has_products():
        yield (
            "this processor has no bfloat16 products, and emulated ones are slow:"
            " training computed in float32"
        )
