"""BERT-base in torchao's integers, compiled by torch, beside lowbit; docs/results/torch-compile*.

    pip install torchao
    python bench/torch_compile.py [--threads 2] [--seconds 15] [--write]

Random weights. Each engine takes turns with torch's float32, as it is; a row is printed when it is
measured. What torch compiles runs in a process of its own: its code is for so many threads. Ready:
seconds from the float model until the first call of both shapes has returned.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torchao
from apart import Apart
from encoder import SIZES, measure
from engines import Encoder, of_torch, torch_compiled, torchao_dynamic, torchao_static
from machine import Page, described, speed_page
from torch import Tensor
from transformers import BertConfig, BertModel
from turns import ready

import lowbit
from lowbit.inspect.environment import processor

COMPILED = {
    "torch.compile float32": torch_compiled,
    "torchao int8 dynamic, torch.compile": torchao_dynamic,
    "torchao int8 static, torch.compile": torchao_static,
}


def ours(model: BertModel, recipe: str, is_compiled: bool) -> Encoder:
    model = copy.deepcopy(model)
    ids = torch.randint(0, 30_000, (8, 128)) if recipe.endswith("static") else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    if not is_compiled:
        model.set_attn_implementation("lowbit")
        return of_torch(model)
    return of_torch(lowbit.compile(model))


def rows(page: Page, model: BertModel, name: str, make: Callable[[], Encoder], budget: float):
    """A row for each shape. make: the engine, which is closed at the end if it is apart."""
    inputs: list[Tensor] = [torch.randint(0, 30_000, size) for size in SIZES]
    start = time.perf_counter()
    run = make()
    try:
        for ids in inputs:
            run(ids)
        until = time.perf_counter() - start
        for ids in inputs:
            cells = measure(model, run, ids, budget)
            batch, tokens = ids.shape
            where = processor().partition(" (")[0]
            page.say(f"| {where} | {name} | {batch} × {tokens} | {until:.1f} | {cells}")
    finally:
        if isinstance(run, Apart):
            run.close()


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
    for name, make in COMPILED.items():
        rows(
            page,
            model,
            name,
            lambda make=make: Apart(given.threads, make, model),
            given.seconds,
        )
    for recipe in ("int8-dynamic", "int8-static", "int4-dynamic"):
        for is_compiled in (False, True):
            rows(
                page,
                model,
                f"lowbit {recipe}, " + ("lowbit.compile" if is_compiled else "its own attention"),
                lambda recipe=recipe, is_compiled=is_compiled: ours(model, recipe, is_compiled),
                given.seconds,
            )


if __name__ == "__main__":
    main()
