"""One scale for all activations that a module will ever see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StaticScale:
    """x ≈ scale · (code − zero_point), codes in int8; −128 is one only with a zero point."""

    scale: float
    zero_point: int = 0

    @property
    def lowest(self) -> int:
        """The smallest code: −127 where 0 is in the middle."""
        return -127 if self.zero_point == 0 else -128
