"""BERT-base in torchao's integers, compiled by torch, beside lowbit; docs/results/torch-compile*.

    pip install torchao
    python bench/torch_compile.py [--threads 2] [--seconds 15] [--write]

Random weights. Each engine takes turns with torch's float32, as it is; a row is printed when it is
measured. What torch compiles runs in a process of its own: its code is for so many threads. Ready:
seconds from the float model until the first call of both shapes has returned.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial

import torch
import torchao
from apart import Apart
from encoder import SIZES, measure
from engines import Encoder, of_torch, torch_compiled, torchao_dynamic, torchao_static
from machine import Page, described, speed_page
from runtime import ours
from transformers import BertConfig, BertModel
from turns import ready

from lowbit.inspect.environment import processor

COMPILED = {
    "torch.compile float32": torch_compiled,
    "torchao int8 dynamic, torch.compile": torchao_dynamic,
    "torchao int8 static, torch.compile": torchao_static,
}


def rows(page: Page, model: BertModel, name: str, make: Callable[[], Encoder], budget: float):
    """A row for each shape. make: the engine, from the float model."""
    inputs = [torch.randint(0, 30_000, size) for size in SIZES]
    start = time.perf_counter()
    run = make()
    with closing(run) if isinstance(run, Apart) else nullcontext():
        for ids in inputs:
            run(ids)
        until = time.perf_counter() - start
        where = processor().partition(" (")[0]
        for ids, (batch, tokens) in zip(inputs, SIZES, strict=True):
            cells = measure(model, run, ids, budget)
            page.say(f"| {where} | {name} | {batch} × {tokens} | {until:.1f} | {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a row")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    ready(given.threads)
    model = BertModel(BertConfig()).eval()
    page = Page(speed_page("torch-compile") if given.write else None)
    page.say(
        "# BERT-base in torchao's integers, compiled by torch",
        "",
        f"`python bench/torch_compile.py`, {time.strftime('%Y-%m-%d')}. {described()} torchao"
        f" {torchao.__version__}. Random weights; medians, × float32 is the median of the ratios"
        " within a round, beside the float32 model as it is. Error: of the last hidden state,"
        " relative to float32. Ready: from the float model to the first answers of both shapes.",
        "",
        "| processor | engine | tokens | ready, s | ms | torch float32, ms | × float32 | error |"
        " rounds |",
        "|---" * 9 + "|",
    )
    engines = {
        **{name: partial(Apart, given.threads, make, model) for name, make in COMPILED.items()},
        **{
            f"lowbit {recipe}, {how}": lambda r=recipe, c=is_compiled: of_torch(ours(model, r, c))
            for recipe in ("int8-dynamic", "int8-static", "int4-dynamic")
            for how, is_compiled in (("its own attention", False), ("lowbit.compile", True))
        },
    }
    for name, make in engines.items():
        rows(page, model, name, make, given.seconds)


if __name__ == "__main__":
    main()
