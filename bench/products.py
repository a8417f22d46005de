"""How near the products with packed weights come to what memory and arithmetic allow.

    python bench/products.py            # a table
    python bench/products.py --write    # the same, written to docs/results/products.md

*Few rows* (decoding): weights of 8192 x 2048 stream from memory, many times what the caches hold;
the share is of the rate at which torch sums a float32 tensor of the same size. *Many rows*
(encoders, prefill): 1024 rows against 3072 x 768, beside torch's float32 product.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import described, finish, speed_page
from turns import take_turns

from lowbit.formats import CHANNEL, QTensor, group
from lowbit.kernels.linear import product
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.schemes import Absmax, Binary, Scheme, ZeroPoint

RESULT = speed_page("products")
STREAMED = 512 << 20  # bytes
FEW, MANY = (8192, 2048), (3072, 768)
ROWS = 1024
SCHEMES: dict[str, Scheme] = {
    "int8 (channel)": Absmax(8, CHANNEL),
    **{f"int{bits} (groups of 64)": ZeroPoint(bits, group(64)) for bits in (4, 3, 2)},
    **{
        f"bcq{bits} (groups of 64)": Binary(bits, group(64), solver="greedy")
        for bits in (4, 3, 2, 1)
    },
}


def median_seconds(run: Callable[[], object], repeats: int = 9) -> float:
    return statistics.median(take_turns({"": run}, repeats)[""])


def few_rows(q: QTensor, activations: str, rows: int) -> float:
    """Weights per second."""
    form = PackedLayout(q.layout, *q.shape)
    packed = form.pack(q)
    copies = [packed.clone() for _ in range(max(2, STREAMED // len(packed)))]
    run = product(form, activations)
    x = torch.randn(rows, q.in_features)

    def stream() -> None:
        for copy in copies:
            run(x, copy, None)

    return q.shape[0] * q.shape[1] * len(copies) / median_seconds(stream)


def memory_rate() -> float:
    """Bytes per second of torch's sum."""
    numbers = torch.zeros(STREAMED // 4)
    return STREAMED / median_seconds(numbers.sum)


def many_rows(q: QTensor, activations: str) -> float:
    """Multiplications and additions per second."""
    form = PackedLayout(q.layout, *q.shape)
    packed, run, x = form.pack(q), product(form, activations), torch.randn(ROWS, q.in_features)
    return ROWS * q.shape[0] * q.shape[1] / median_seconds(lambda: run(x, packed, None))


def table() -> str:
    torch.manual_seed(0)
    rate = memory_rate()
    weight = torch.randn(MANY)
    x = torch.randn(ROWS, MANY[1])
    float_macs = ROWS * weight.numel() / median_seconds(lambda: x @ weight.T)
    lines = [
        f"torch sums float32 at {rate / 1e9:.1f} GB/s; its float32 product of {ROWS} rows does"
        f" {float_macs / 1e9:.0f} GMAC/s.",
        "",
        "| weights | activations | 1 row, Gweights/s | GB/s | share of memory | 4 rows, Gweights/s"
        f" | {ROWS} rows, GMAC/s | against float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scheme in SCHEMES.items():
        q, small = scheme.quantize(torch.randn(FEW)), scheme.quantize(weight)
        size = PackedLayout(q.layout, *q.shape).size / (FEW[0] * FEW[1])
        for activations in ("dynamic", "float"):
            one, four = few_rows(q, activations, 1), few_rows(q, activations, 4)
            many = many_rows(small, activations)
            lines.append(
                f"| {name} | {activations} | {one / 1e9:.1f} | {one * size / 1e9:.1f}"
                f" | {one * size / rate:.0%} | {four / 1e9:.1f} | {many / 1e9:.0f}"
                f" | {many / float_macs:.2f}× |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    date = time.strftime("%Y-%m-%d")
    head = f"`python bench/products.py`, {date}. {described()}"
    lines = ["# The products by themselves", "", head, "", table()]
    finish(lines, RESULT, arguments.write)


if __name__ == "__main__":
    main()
