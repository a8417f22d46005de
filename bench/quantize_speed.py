"""How fast each scheme quantizes a float32 weight, beside a plain copy of it.

    python bench/quantize_speed.py [--threads 2] [--rounds 9] [--json] [--write]

Normal weights of standard deviation 0.02.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from machine import commit, finish, processor, result_page
from torch import Tensor
from turns import parser, ready, take_turns

from lowbit.formats import CHANNEL, group
from lowbit.schemes import Absmax, Binary, ZeroPoint

RESULT = result_page("quantize-speed.md")
# Binary codes are fitted, so they get an eighth of the rows; calls cost most on a small weight.
LARGE, WIDE, SMALL = (4096, 4096), (512, 4096), (128, 128)

CONTENDERS: dict[str, tuple[tuple[int, int], Callable[[Tensor], Any]]] = {
    "torch clone": (LARGE, torch.clone),
    "absmax, 8 bits, channel": (LARGE, Absmax(8).quantize),
    "absmax, 4 bits, groups of 64": (LARGE, Absmax(4, group(64)).quantize),
    "zero-point, 8 bits, channel": (LARGE, ZeroPoint(8).quantize),
    "zero-point, 4 bits, groups of 64": (LARGE, ZeroPoint(4, group(64)).quantize),
    "zero-point, 3 bits, groups of 64": (LARGE, ZeroPoint(3, group(64)).quantize),
    "zero-point, 2 bits, groups of 64": (LARGE, ZeroPoint(2, group(64)).quantize),
    "binary, 3 planes, greedy, groups of 64": (WIDE, Binary(3, solver="greedy").quantize),
    **{f"binary, {b} planes, groups of 64": (WIDE, Binary(b).quantize) for b in (1, 2, 3, 4)},
    "binary, 3 planes, nested, groups of 64": (WIDE, Binary(3, nested=True).quantize),
    "binary, 3 planes, channel": (WIDE, Binary(3, CHANNEL).quantize),
    "zero-point, 4 bits, groups of 64, small": (SMALL, ZeroPoint(4, group(64)).quantize),
    "binary, 3 planes, groups of 64, small": (SMALL, Binary(3).quantize),
}


def measure(rounds: int) -> list[dict[str, Any]]:
    """Per contender: shape, milliseconds (median and fastest), MB of float32 input per second."""
    weights = {shape: torch.randn(shape) * 0.02 for shape in (LARGE, WIDE, SMALL)}
    runs = {name: partial(run, weights[shape]) for name, (shape, run) in CONTENDERS.items()}
    seconds = take_turns(runs, rounds)
    return [
        {
            "scheme": name,
            "shape": list(shape),
            "median_ms": statistics.median(seconds[name]) * 1e3,
            "fastest_ms": min(seconds[name]) * 1e3,
            "mb_per_s": weights[shape].nbytes / 1e6 / statistics.median(seconds[name]),
        }
        for name, (shape, _) in CONTENDERS.items()
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "| | weight | median ms | fastest ms | MB/s of float32 |",
        "|---|---|---|---|---|",
        *(
            f"| {r['scheme']} | {r['shape'][0]} × {r['shape'][1]} | {r['median_ms']:.1f} |"
            f" {r['fastest_ms']:.1f} | {r['mb_per_s']:,.0f} |"
            for r in rows
        ),
    ]


def main() -> None:
    asked = parser(__doc__, RESULT, rounds=9)
    asked.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = asked.parse_args()
    ready(options.threads)

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": options.threads,
        "torch": torch.__version__,
        "commit": commit(),
        "rounds": options.rounds,
    }
    rows = measure(options.rounds)
    lines = [
        "# Speed of the schemes",
        "",
        f"`python bench/quantize_speed.py`, {about['date']}, {about['processor']},"
        f" {about['threads']} threads, torch {about['torch']}, commit {about['commit']};"
        f" {about['rounds']} rounds.",
        "",
        *table(rows),
    ]
    if options.json:
        lines = [json.dumps({**about, "results": rows}, indent=1)]
    finish(lines, RESULT, options.write and not options.json)


if __name__ == "__main__":
    main()
