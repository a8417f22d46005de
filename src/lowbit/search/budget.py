"""What a search may spend: bytes, bits per weight, or a share of a metric."""

import re
from dataclasses import asdict, dataclass
from typing import Self

from lowbit.errors import UsageError

UNITS = {
    unit + "b": base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, prefix in enumerate(("", "k", "m", "g"))
    for unit in [prefix + infix * bool(prefix)]
}


@dataclass(frozen=True)
class Budget:
    """Of `max_bytes` of stored tensors, `max_bits` per weight of the whole model, or of `max_drop`,
    the share by which the task's metric may get worse. Raises UsageError unless it is one of them.
    """

    max_bytes: int | None = None
    max_bits: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in asdict(self).values() if value is not None]
        if len(given) != 1:
            raise UsageError(f"a search takes one budget, of size, bits or drop, not {len(given)}")
        if not 0 <= given[0] < float("inf"):
            raise UsageError(f"a budget is a number from 0 on, not {given[0]}")

    def bytes_of(self, parameters: int) -> int | None:
        """The bytes that a model with so many parameters may take; None for a drop."""
        if self.max_bits is not None:
            return int(self.max_bits * parameters / 8)
        return self.max_bytes

    @classmethod
    def parse(cls, size: str | None, bits: float | None, drop: str | None) -> Self:
        """Of text such as "20MB" or "1.5 GiB", and "1%" or "0.01". Raises UsageError."""
        return cls(
            None if size is None else int(_number(size, UNITS, "size", "20MB")),
            bits,
            None if drop is None else _number(drop, {"": 1, "%": 1 / 100}, "drop", "1%"),
        )


def _number(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*", text.lower())
    if found is None or found[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise UsageError(
            f"{what} {text!r} is not a number with a unit ({known}), such as {example}"
        )
    return float(found[1]) * units[found[2]]
