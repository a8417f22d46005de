"""Dynamic quantization of activations to int8, one scale per group of a row (see reference.py)."""

from functools import partial

from jaxtyping import Float, Float32, Int8
from torch import Tensor

from lowbit.kernels.native import targets
from lowbit.kernels.quantize_rows import native, reference
from lowbit.kernels.selection import Kernel, never, select

KERNELS = (
    *(
        Kernel(
            target.name,
            partial(native.quantize_rows, target=target.name),
            native.unsupported,
            target.feature,
        )
        for target in targets("quantize_rows")
    ),
    Kernel("reference", reference.quantize_rows, never),
)


def quantize_rows(
    x: Float[Tensor, "rows cols"], group_size: int
) -> tuple[Int8[Tensor, "rows cols"], Float32[Tensor, "rows groups"]]:
    """Codes and scales from the best kernel for this call. All kernels give the same bits."""
    kernel, _ = select(KERNELS, x, group_size)
    codes, scales = kernel.run(x, group_size)
    return codes, scales
