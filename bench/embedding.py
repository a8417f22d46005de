"""Rows of a quantized embedding beside torch's lookup in a float32 table.

    python bench/embedding.py            # a table
    python bench/embedding.py --write    # the same, written to docs/results/embedding.md

The table is BERT's, 30522 × 768; ids are random, so that most rows come from memory or from the
outermost cache. Each recipe takes turns with float32.
"""

import time

import torch
from machine import described, finish, speed_page
from torch.nn import functional as F
from turns import parser, ready, take_turns, times_faster

from lowbit.formats import CHANNEL, group
from lowbit.kernels.embedding import native
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.selection import target_here
from lowbit.schemes import Absmax, Binary, Scheme, ZeroPoint

RESULT = speed_page("embedding")
ROWS, COLUMNS = 30522, 768
LOOKUPS, DIFFERENT = (128, 1024), 32
SCHEMES: dict[str, Scheme] = {
    "int8 (channel)": Absmax(8, CHANNEL),
    "int4 (groups of 64)": ZeroPoint(4, group(64)),
    "int2 (groups of 64)": ZeroPoint(2, group(64)),
    "bcq3 (groups of 64)": Binary(3, group(64), solver="greedy"),
}


def times_as_long(name: str, table: torch.Tensor, rounds: int) -> list[float]:
    """Beside float32, for each number of ids."""
    q = SCHEMES[name].quantize(table)
    form = PackedLayout(q.layout, *q.shape)
    packed, ratios = form.pack(q), []
    for count in LOOKUPS:
        ids = [torch.randint(ROWS, (count,)) for _ in range(DIFFERENT)]
        taken = take_turns(
            {
                "float32": lambda ids=ids: [F.embedding(i, table) for i in ids],
                "lowbit": lambda ids=ids: [
                    native.embedding(i, packed, form, torch.float32) for i in ids
                ],
            },
            rounds,
        )
        ratios.append(1 / times_faster(taken["float32"], taken["lowbit"]))
    return ratios


def main() -> None:
    arguments = parser(__doc__, RESULT, rounds=25).parse_args()
    head = "".join(f" {count} ids |" for count in LOOKUPS)
    lines = [f"| weights | threads |{head}", "|---|---|" + "---|" * len(LOOKUPS)]
    print(*lines, sep="\n")
    for threads in sorted({1, arguments.threads}):
        ready(threads)
        table = torch.randn(ROWS, COLUMNS)
        for name in SCHEMES:
            told = "".join(f" {r:.1f} × |" for r in times_as_long(name, table, arguments.rounds))
            lines.append(f"| {name} | {threads} |{told}")
            print(lines[-1], flush=True)
    date = time.strftime("%Y-%m-%d")
    target = target_here("decode_packed")
    head = f"`python bench/embedding.py`, {date}. {described()} Target: {target}."
    title = ["# Rows of a quantized embedding", "", head, "", "Times as long as float32's lookup."]
    finish([*title, "", *lines], RESULT, arguments.write)


if __name__ == "__main__":
    main()
