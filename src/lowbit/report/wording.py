"""Numbers as people read them. A number that is not finite is said as such, never rounded."""

import math

KIBI, MEBI, GIBI = 1 << 10, 1 << 20, 1 << 30
UNMEASURED = "–"
# More digits than these are noise, whatever two numbers differ by.
MOST_DIGITS = 6
# A smaller relative change is not worth a number of its own.
SMALLEST_SHARE = 1e-4


def odd(value: float) -> str | None:
    """The words for a value that is not finite, else None."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return None


def number(value: float, digits: int = 4) -> str:
    """`value` with so many significant digits, plainly: 49.5, 0.0132, 5,912."""
    words = odd(value)
    if words is not None:
        return words
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -5:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def pair(before: float, after: float) -> tuple[str, str]:
    """Both with the fewest digits, three at least, that tell them apart."""
    for digits in range(3, MOST_DIGITS):
        texts = number(before, digits), number(after, digits)
        if texts[0] != texts[1]:
            return texts
    return number(before, MOST_DIGITS), number(after, MOST_DIGITS)


def times(ratio: float) -> str:
    """A factor: 0.77×, 1.8×, 12×."""
    words = odd(ratio)
    if words is not None:
        return words
    return f"{ratio:.2f}×" if ratio < 1.1 else f"{ratio:.1f}×" if ratio < 10 else f"{ratio:,.0f}×"


def percent(share: float) -> str:
    """The size of a relative change, without its sign: 0.1 → 10 %."""
    value = abs(share) * 100
    words = odd(value)
    if words is not None:
        return words
    if 0 < abs(share) < SMALLEST_SHARE:
        return f"less than {percent(SMALLEST_SHARE)}"
    return (
        f"{value:.2f} %" if value < 0.1 else f"{value:.1f} %" if value < 100 else f"{value:,.0f} %"
    )


def size(count: int | None) -> str:
    """Bytes in the largest binary unit that leaves a number of at least 1."""
    if count is None:
        return UNMEASURED
    for unit, name in ((GIBI, "GiB"), (MEBI, "MiB"), (KIBI, "KiB")):
        if count >= unit:
            value = count / unit
            return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{count:,} bytes"


def duration(seconds: float) -> str:
    words = odd(seconds)
    if words is not None:
        return words
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{number(seconds / unit, 3)} {name}"
    return f"{number(seconds * 1e6, 3)} µs"


def decibels(relative_error: float | None) -> float | None:
    """Signal-to-noise ratio −10·log10 of Σ(w − ŵ)² / Σw²: ∞ where nothing was lost."""
    if relative_error is None:
        return None
    if relative_error == 0:
        return math.inf
    # An error that is no number, or is below zero, gives no ratio.
    return -10 * math.log10(relative_error) if relative_error > 0 else math.nan


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
