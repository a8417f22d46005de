"""What the checks of stored numbers add to the time of loading: BERT-base, int8-all.

    python bench/load.py            # a table
    python bench/load.py --write    # the same, written to docs/results/load.md

The weights are random; the files are in the page cache, so that reading them costs least and the
checks weigh most. Loading with and without them takes turns; "without" puts nothing in the place of
the one function that looks at numbers. Sizes, dtypes, names and configs are checked in both.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import transformers
from machine import described, finish, speed_page
from transformers import AutoModel, BertConfig, BertModel
from turns import parser, ready, take_turns

import lowbit
from lowbit.checkpoint.load import load_model

RESULT = speed_page("load")


def row(name: str, load: Callable[[str], object], folder: str, rounds: int) -> str:
    def without() -> None:
        with patch("lowbit.conversion.skeleton.check_numbers", lambda model: None):
            load(folder)

    taken = take_turns({"with": lambda: load(folder), "without": without}, rounds, 2)
    more = statistics.median(a / b for a, b in zip(taken["with"], taken["without"], strict=True))
    fastest = min(taken["with"]) / min(taken["without"])
    times = (f"{1e3 * statistics.median(taken[each]):.0f}" for each in ("with", "without"))
    return f"| {name} | {' | '.join(times)} | {more - 1:+.1%} | {fastest - 1:+.1%} |"


def main() -> None:
    asked = parser(__doc__, RESULT, rounds=15).parse_args()
    ready(asked.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = BertModel(BertConfig()).eval()
        lowbit.quantize(model, "int8-all", progress=False)
        model.save_pretrained(folder)
        del model
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        doors = {"from_pretrained": AutoModel.from_pretrained, "lowbit's own": load_model}
        rows = [row(name, load, folder, asked.rounds) for name, load in doors.items()]
    lines = [
        "# Loading with the checks of stored numbers, and without",
        "",
        f"`python bench/load.py`, {time.strftime('%Y-%m-%d')}. {described()} BERT-base of random"
        f" weights, int8-all, {size / 2**20:.0f} MiB; {asked.rounds} rounds in turns.",
        "",
        "| loader | with checks, ms | without, ms | more, median of rounds | more, fastest |",
        "|---|---|---|---|---|",
        *rows,
    ]
    finish(lines, RESULT, asked.write)


if __name__ == "__main__":
    main()
