"""How near the products with packed weights come to what memory and arithmetic allow.

    python bench/products.py                  # a table
    python bench/products.py --target avx2    # of another target that this processor can run
    python bench/products.py --threads 1      # [default: 1 2]
    python bench/products.py --write          # the same, kept in docs/results/

*Few rows* (decoding): weights of 8192 x 2048 stream from memory, many times what the caches hold;
the share is of the rate at which torch sums a float32 tensor of the same size. *Many rows*
(encoders, prefill): 1024 rows against 3072 x 768, beside torch's float32 product, which is held to
the target's instruction set. The share of the limit is that of a short sequence of instructions,
which multiplies such codes and activations in registers (limits.py). All times are the least of
several, ours and torch's in turns; torch's that of all rows with as many threads. It takes 1 to 3
minutes on a quiet machine.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import targets
import torch
from limits import macs_per_second
from machine import described, finish
from turns import take_turns

from lowbit.formats import CHANNEL, QTensor, group
from lowbit.inspect.environment import processor
from lowbit.kernels.linear import families, product
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.schemes import Absmax, Binary, Scheme, ZeroPoint

STREAMED = 512 << 20  # bytes
FEW, MANY = (8192, 2048), (3072, 768)
ROWS = 1024
SCHEMES: dict[str, Scheme] = {
    "int8 (channel)": Absmax(8, CHANNEL),
    **{f"int{bits} (groups of 64)": ZeroPoint(bits, group(64)) for bits in (4, 3, 2)},
    "int3 (groups of 16)": ZeroPoint(3, group(16)),
    **{
        f"bcq{bits} (groups of 64)": Binary(bits, group(64), solver="greedy")
        for bits in (4, 3, 2, 1)
    },
}
COLUMNS = (
    "processor",
    "target",
    "threads",
    "weights",
    "activations",
    "1 row, Gweights/s",
    "GB/s",
    "share of memory",
    "4 rows, Gweights/s",
    f"{ROWS} rows, GMAC/s",
    "share of limit",
    "against float32",
)


@dataclass(frozen=True)
class Sequences:
    """Those of limits.py that codes of 8 bits, of at most 4 bits, and planes can be multiplied by.
    vector: bytes."""

    vector: int
    eight: str
    narrow: str
    planes: str


FLOAT, DOT, LOOKUPS = "float32 multiply-add", "vpdpbusd", "lookups"
PAIRS = "16 bits, half the multiplications", "bytes, sums in 16 bits", LOOKUPS
OF_TARGET = {
    "avx2": Sequences(32, *PAIRS),
    "avxvnni": Sequences(32, DOT, DOT, LOOKUPS),
    "avx512bw": Sequences(64, *PAIRS),
    "avx512": Sequences(64, DOT, DOT, DOT),
}


def least_seconds(rounds: int = 7, **runs: Callable[[], object]) -> dict[str, float]:
    return {name: min(taken) for name, taken in take_turns(runs, rounds).items()}


def few_rows(q: QTensor, activations: str, rows: int, memory: torch.Tensor) -> tuple[float, float]:
    """Weights per second, and bytes per second of torch's sum."""
    form = PackedLayout(q.layout, *q.shape)
    packed = form.pack(q)
    copies = [packed.clone() for _ in range(max(2, STREAMED // len(packed)))]
    run = product(form, activations)
    x = torch.randn(rows, q.in_features)

    def stream() -> None:
        for copy in copies:
            run(x, copy, None)

    taken = least_seconds(ours=stream, memory=memory.sum)
    weights = q.shape[0] * q.shape[1] * len(copies)
    return weights / taken["ours"], STREAMED / taken["memory"]


def many_rows(q: QTensor, activations: str, weight: torch.Tensor) -> tuple[float, float]:
    """Multiplications and additions per second, of ours and of torch's float32 product."""
    form = PackedLayout(q.layout, *q.shape)
    packed, run, x = form.pack(q), product(form, activations), torch.randn(ROWS, q.in_features)
    taken = least_seconds(
        rounds=12, ours=lambda: run(x, packed, None), float32=lambda: x @ weight.T
    )
    macs = ROWS * weight.numel()
    return macs / taken["ours"], macs / taken["float32"]


def limits(target: str) -> dict[tuple[bool, bool, int], float]:
    """Products per second and core at most, by whether weights are binary, activations are float,
    and bits; what is not known is left out."""
    known = OF_TARGET.get(target)
    if known is None:
        return {}
    names = {FLOAT, known.eight, known.narrow, known.planes}
    rates = macs_per_second(dict.fromkeys(sorted(names), known.vector))
    if not rates:
        return {}
    for name, rate in rates.items():
        print(f"limit of one core: {name} {rate / 1e9:.0f} GMAC/s", flush=True)
    found = {(False, False, bits): rates[known.narrow] for bits in (2, 3, 4)}
    found[False, False, 8] = rates[known.eight]
    found |= {(True, False, bits): rates[known.planes] / bits for bits in (1, 2, 3, 4)}
    if families.family("float", target) == "fma":
        found |= {(binary, True, bits): rates[FLOAT] for binary, _, bits in list(found)}
    return found


class Row(NamedTuple):
    threads: int
    scheme: str
    activations: str
    one: float  # weights per second
    size: float  # bytes of a weight
    four: float
    many: float  # products per second
    limit: float | None

    def line(self, target: str, rate: float, float32: float) -> str:
        """Beside what torch's sum and product did at most."""
        return line(
            processor().split(" (")[0],
            target,
            str(self.threads),
            self.scheme,
            self.activations,
            f"{self.one / 1e9:.1f}",
            f"{self.one * self.size / 1e9:.1f}",
            f"{self.one * self.size / rate:.0%}",
            f"{self.four / 1e9:.1f}",
            f"{self.many / 1e9:.0f}",
            f"{self.many / (self.limit * self.threads):.0%}" if self.limit else "",
            f"{self.many / float32:.2f}×",
        )


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(target: str, kinds: Iterable[str], threads: Iterable[int]) -> list[str]:
    torch.manual_seed(0)
    most = limits(target)
    memory, weight = torch.zeros(STREAMED // 4), torch.randn(MANY)
    weights = {
        name: (scheme.quantize(torch.randn(FEW)), scheme.quantize(weight))
        for name, scheme in SCHEMES.items()
    }
    rows: list[Row] = []
    rate, float32 = dict.fromkeys(threads, 0.0), dict.fromkeys(threads, 0.0)
    # All of one number of threads, then all of the next: changing the number slows what follows.
    for count, name, activations in itertools.product(threads, weights, kinds):
        torch.set_num_threads(count)
        q, small = weights[name]
        size = PackedLayout(q.layout, *q.shape).size / (FEW[0] * FEW[1])
        one, sums = few_rows(q, activations, 1, memory)
        four, _ = few_rows(q, activations, 4, memory)
        many, floats = many_rows(small, activations, weight)
        rate[count], float32[count] = max(rate[count], sums), max(float32[count], floats)
        limit = most.get((q.layout.format == "binary", activations == "float", q.layout.bits))
        rows.append(Row(count, name, activations, one, size, four, many, limit))
        print(rows[-1].line(target, rate[count], float32[count]), flush=True)
    return [
        *(
            f"With {count} thread{'s' * (count > 1)} torch sums float32 at up to"
            f" {rate[count] / 1e9:.1f} GB/s; its float32 product of {ROWS} rows does up to"
            f" {float32[count] / 1e9:.0f} GMAC/s."
            for count in threads
        ),
        "",
        line(*COLUMNS),
        line(*["---"] * len(COLUMNS)),
        *(row.line(target, rate[row.threads], float32[row.threads]) for row in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = targets.runnable()
    parser.add_argument("--target", choices=names, help="default: the best of the processor")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dynamic", action="store_true", help="int8 activations alone")
    parser.add_argument("--note", default="", help="a sentence that the page says of the machine")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    target, best = targets.enter(arguments.target), names[0]

    torch.set_num_threads(1)
    before, date = os.getloadavg()[0], time.strftime("%Y-%m-%d")
    kinds = ("dynamic",) if arguments.dynamic else ("dynamic", "float")
    measured = table(target, kinds, arguments.threads)
    forced = "" if target == best else f", forced on a processor whose best target is {best}"
    head = [
        "# The products by themselves",
        "",
        f"`python bench/products.py`, {date}. {described()}",
        "",
        f"Target: {target}{forced}. {arguments.note}".strip(),
        f"Processes that wanted one of {os.cpu_count()} processors: {before:.1f} at the beginning,"
        f" {os.getloadavg()[0]:.1f} at the end (load averages of a minute).",
        "",
    ]
    finish([*head, *measured], targets.page("products", target), arguments.write)


if __name__ == "__main__":
    main()
