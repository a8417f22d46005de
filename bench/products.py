"""How near the products with packed weights come to what memory and arithmetic allow.

    python bench/products.py                  # a table
    python bench/products.py --kernel avx2    # of another target that this processor can run
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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from limits import macs_per_second
from machine import described, finish, speed_page
from turns import take_turns

from lowbit.formats import CHANNEL, QTensor, group
from lowbit.inspect.environment import processor
from lowbit.kernels import native
from lowbit.kernels.linear import families, product
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.selection import VARIABLE
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
class Target:
    """What holds torch to the instruction set, and the sequences (limits.py) that codes of 8 bits,
    of at most 4 bits, and planes can be multiplied by."""

    aten: str
    onednn: str
    mkl: str
    vector: int  # bytes
    eight: str
    narrow: str
    planes: str

    def environment(self) -> dict[str, str]:
        return {
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
        }


FLOAT, DOT, LOOKUPS = "float32 multiply-add", "vpdpbusd", "lookups"
PAIRS = "16 bits, half the multiplications", "bytes, sums in 16 bits", LOOKUPS
TARGETS = {
    "avx2": Target("avx2", "AVX2", "AVX2", 32, *PAIRS),
    "avxvnni": Target("avx2", "AVX2_VNNI", "AVX2", 32, DOT, DOT, LOOKUPS),
    "avx512bw": Target("avx512", "AVX512_CORE", "AVX512", 64, *PAIRS),
    "avx512": Target("avx512", "AVX512_CORE_VNNI", "AVX512_E1", 64, DOT, DOT, DOT),
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


def limits(kernel: str) -> dict[tuple[bool, bool, int], float]:
    """Products per second and core at most, by whether weights are binary, activations are float,
    and bits; what is not known is left out."""
    target = TARGETS.get(kernel)
    if target is None:
        return {}
    names = {FLOAT, target.eight, target.narrow, target.planes}
    rates = macs_per_second(dict.fromkeys(sorted(names), target.vector))
    if not rates:
        return {}
    for name, rate in rates.items():
        print(f"limit of one core: {name} {rate / 1e9:.0f} GMAC/s", flush=True)
    found = {(False, False, bits): rates[target.narrow] for bits in (2, 3, 4)}
    found[False, False, 8] = rates[target.eight]
    found |= {(True, False, bits): rates[target.planes] / bits for bits in (1, 2, 3, 4)}
    if families.family("float", kernel) == "fma":
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

    def line(self, kernel: str, rate: float, float32: float) -> str:
        """Beside what torch's sum and product did at most."""
        return line(
            processor().split(" (")[0],
            kernel,
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


def table(kernel: str, kinds: Iterable[str], threads: Iterable[int]) -> list[str]:
    torch.manual_seed(0)
    most = limits(kernel)
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
        print(rows[-1].line(kernel, rate[count], float32[count]), flush=True)
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
        *(row.line(kernel, rate[row.threads], float32[row.threads]) for row in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    runnable = [t for t in native.targets("linear") if not native.lacks(t.feature)]
    names = [target.name for target in runnable]
    parser.add_argument("--kernel", choices=names, help="the target [default: the best one]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dynamic", action="store_true", help="int8 activations alone")
    parser.add_argument("--note", default="", help="a sentence that the page says of the machine")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    best = names[0]
    kernel = arguments.kernel or best
    wanted = {VARIABLE: kernel}
    # The best target is what torch finds by itself, too.
    if kernel != best and kernel in TARGETS:
        wanted |= TARGETS[kernel].environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # torch reads them when it is loaded.
        command = [sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(command, env=os.environ | wanted).returncode)

    torch.set_num_threads(1)
    before, date = os.getloadavg()[0], time.strftime("%Y-%m-%d")
    kinds = ("dynamic",) if arguments.dynamic else ("dynamic", "float")
    measured = table(kernel, kinds, arguments.threads)
    forced = "" if kernel == best else f", forced on a processor whose best target is {best}"
    head = [
        "# The products by themselves",
        "",
        f"`python bench/products.py`, {date}. {described()}",
        "",
        f"Target: {kernel}{forced}. {arguments.note}".strip(),
        f"Processes that wanted one of {os.cpu_count()} processors: {before:.1f} at the beginning,"
        f" {os.getloadavg()[0]:.1f} at the end (load averages of a minute).",
        "",
    ]
    feature = next(t.feature for t in runnable if t.name == kernel)
    finish([*head, *measured], speed_page("products", feature), arguments.write)


if __name__ == "__main__":
    main()
