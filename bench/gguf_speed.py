"""Files that lowbit exports beside those of llama.cpp's own quantizer, both run by llama.cpp.

    pip install ".[bench]"
    python bench/gguf_speed.py [--threads 2] [--rounds 15] [--write]

The small GPT-2 of `bench/gguf_files.py` in files of the same types. They take turns with a prompt
of 256 tokens and with 64 tokens one after the other; a ratio is the median of those in a round.
"""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
from gguf_files import SHARED, Bench
from llama_cpp_model import LlamaCpp, built_for
from machine import described, finish, result_page
from turns import parser, ready, take_turns

TYPES = ("Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
PROMPT, DECODED = 256, 64
PAGE = result_page("gguf-speed.md")


def rows(bench: Bench, threads: int, rounds: int) -> Iterator[str]:
    for kind in TYPES:
        own, peer = (
            LlamaCpp(file, PROMPT)
            for file in (bench.solved(kind, "nearest"), bench.peer(kind, False))
        )
        runs = {
            "own prompt": lambda own=own: own.read(PROMPT, threads),
            "peer prompt": lambda peer=peer: peer.read(PROMPT, threads),
            "own tokens": lambda own=own: own.decode(DECODED, threads),
            "peer tokens": lambda peer=peer: peer.decode(DECODED, threads),
        }
        taken = take_turns(runs, rounds)
        own.close()
        peer.close()
        cells = [kind]
        for job, tokens in (("prompt", PROMPT), ("tokens", DECODED)):
            mine, theirs = taken[f"own {job}"], taken[f"peer {job}"]
            ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
            cells += [f"{tokens / statistics.median(each):,.0f}" for each in (mine, theirs)]
            cells.append(f"{ratio:.2f}")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    options = parser(__doc__, PAGE, rounds=15).parse_args()
    ready(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "rows.json"
        bench = Bench(SHARED / "models", SHARED / "data", 1, 1, kept, Path(folder))
        found = []
        for row in rows(bench, options.threads, options.rounds):
            print(row, flush=True)
            found.append(row)
    lines = [
        "# GGUF: speed of exported files in llama.cpp",
        "",
        f"`python bench/gguf_speed.py`. {described()} llama.cpp as built by llama-cpp-python"
        f" {llama_cpp.__version__} for {built_for()}. A GPT-2 of 8.5 million parameters, tokens/s;"
        " medians of turns.",
        "",
        f"| type | prompt of {PROMPT}: lowbit's file | llama.cpp's file | ratio |"
        f" {DECODED} tokens: lowbit's file | llama.cpp's file | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *found,
    ]
    finish(lines, PAGE, options.write)


if __name__ == "__main__":
    main()
