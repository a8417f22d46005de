"""How far a stored weight is from the float one."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from lowbit.formats import QTensor, decode_rows
from lowbit.formats.granularity import row_blocks


class ErrorSums(NamedTuple):
    """Σ (w − ŵ)² and Σ w² over so many weights."""

    noise: float
    signal: float
    weights: int

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], q: QTensor) -> "ErrorSums":
        """Computed in float64, some rows at a time."""
        noise = signal = 0.0
        for rows in row_blocks(*q.shape):
            part = weight[rows].double()
            signal += part.square().sum().item()
            noise += (part - decode_rows(q, rows)).square().sum().item()
        return cls(noise, signal, weight.numel())


@dataclass(frozen=True)
class WeightError:
    """Mean of (w − ŵ)², and the same relative to the mean of w² (0 where both are 0)."""

    mean_squared_error: float
    relative_error: float

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], q: QTensor) -> "WeightError":
        """Computed in float64, some rows at a time."""
        return cls.of_sums([ErrorSums.of(weight, q)])

    @classmethod
    def of_sums(cls, parts: Iterable[ErrorSums]) -> "WeightError":
        """That of several weights together."""
        noise, signal, weights = map(sum, zip(*parts, strict=True))
        return cls(noise / max(1, weights), noise / signal if noise else 0.0)

    @classmethod
    def from_dict(cls, stored: Mapping[str, float]) -> "WeightError":
        """The inverse of `to_dict`."""
        return cls(float(stored["mean_squared_error"]), float(stored["relative_error"]))

    @property
    def signal_to_noise_db(self) -> float:
        """−10·log₁₀ of the relative error; infinite without error."""
        return -10 * math.log10(self.relative_error) if self.relative_error else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; no SNR where it is infinite, which JSON cannot say."""
        known = {
            "mean_squared_error": self.mean_squared_error,
            "relative_error": self.relative_error,
        }
        snr = self.signal_to_noise_db
        return known if math.isinf(snr) else known | {"signal_to_noise_db": snr}
