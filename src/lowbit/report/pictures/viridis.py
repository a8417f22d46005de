"""The colour scale viridis: dark is little, light is much, and the colour-blind read it too.

The values are those of Stéfan van der Walt and Nathaniel Smith, who gave them to the public domain
(CC0).
"""

ANCHORS = tuple(
    tuple(bytes.fromhex(colour))
    for colour in (
        "440154", "48186a", "472d7b", "424086", "3b528b", "33638d", "2c728e", "26828e", "21918c",
        "1fa088", "28ae80", "3fbc73", "5ec962", "84d44b", "addc30", "d8e219", "fde725",
    )
)  # fmt: skip


def viridis(share: float) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255. share: from 0, dark, to 1, light; beyond is cut off."""
    place = min(1.0, max(0.0, share)) * (len(ANCHORS) - 1)
    left = min(int(place), len(ANCHORS) - 2)
    pairs = zip(ANCHORS[left], ANCHORS[left + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - left)) for a, b in pairs)
    return red, green, blue


def colour(share: float) -> str:
    """The same as CSS."""
    red, green, blue = viridis(share)
    return f"#{red:02x}{green:02x}{blue:02x}"
