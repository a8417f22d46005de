"""One scale for all activations that a module will ever see."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StaticScale:
    """x ≈ scale · (code − zero_point), codes in int8; −128 is one only with a zero point."""

    scale: float
    zero_point: int = 0

    @property
    def lowest(self) -> int:
        """The smallest code: −127 where 0 is in the middle."""
        return -127 if self.zero_point == 0 else -128


def fake_quantize(x: Tensor, static: StaticScale) -> tuple[Tensor, Tensor]:
    """x as its codes decode, and where it was not clamped.

    The numbers are those of torch.fake_quantize_per_tensor_affine, which takes twice the time on
    a CPU and makes codes of NaN.
    """
    codes = (x.float() * (1 / static.scale)).round_()
    if static.zero_point:
        codes += static.zero_point
    kept = codes.clamp(static.lowest, 127)
    inside = kept == codes
    if static.zero_point:
        kept -= static.zero_point
    return kept.mul_(static.scale).to(x.dtype), inside
