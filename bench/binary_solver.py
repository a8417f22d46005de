"""What the steps of the binary solver give; written to docs/results/binary-solver.md.

    python bench/binary_solver.py [--data FOLDER] [--models FOLDER] [--write]

The error is tr((W − Ŵ) H (W − Ŵ)ᵀ) / tr(W H Wᵀ), H from 32 windows of the training text.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import described, finish, result_page
from torch import Tensor

from lowbit import Binary, dequantize
from lowbit.calibration import texts
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.formats.binary import BinaryTensor, prefix
from lowbit.solvers.binary.compensated import solve
from lowbit.solvers.hessian import Inputs, weight_error

SHARED = Path(__file__).parents[2] / "shared"
LAYERS = ("h.1.attn.c_attn", "h.4.mlp.c_fc", "h.4.mlp.c_proj")
PASSES = (0, 1, 3)
SAMPLES = 32


def seen(models: Path, data: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight, hessian) of each layer."""
    folder = models / "gpt2-wikitext2"
    model = load_model(folder)
    text = data / "wikitext-2" / "train.txt"
    batches = texts.read(text, model, load_tokenizer(folder), SAMPLES).batches
    layers = [model.transformer.get_submodule(name) for name in LAYERS]
    inputs = [Inputs.none_yet(layer.nx, torch.device("cpu")) for layer in layers]
    for layer, own in zip(layers, inputs, strict=True):
        layer.register_forward_pre_hook(lambda m, args, own=own: own.add(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for layer, own in zip(layers, inputs, strict=True):
        yield layer.weight.detach().t().contiguous(), own.hessian


def relative(weight: Tensor, hessian: Tensor, q: BinaryTensor) -> float:
    error = weight_error(weight - dequantize(q), hessian).sum()
    return float(error / weight_error(weight, hessian).sum())


def rows(models: Path, data: Path) -> Iterator[str]:
    layers = list(seen(models, data))
    yield f"| planes | | {' | '.join(LAYERS)} | seconds |"
    yield f"|---|---|{'---|' * len(LAYERS)}---|"
    for bits in (3, 2):
        ways = {"nearest codes": lambda w, h, scheme: scheme.quantize(w)}
        for n in PASSES:
            label = f"{n} passes of refinement" if n else "compensation"
            ways[label] = lambda w, h, scheme, n=n: solve(w, h, scheme, passes=n)
        for label, way in ways.items():
            start = time.perf_counter()
            errors = [relative(w, h, way(w, h, Binary(bits))) for w, h in layers]
            seconds = time.perf_counter() - start
            yield f"| {bits} | {label} | {' | '.join(f'{e:.6f}' for e in errors)} | {seconds:.1f} |"
    nested = [solve(w, h, Binary(3, nested=True)) for w, h in layers]
    for bits in (2, 1):
        errors = [relative(*of, prefix(q, bits)) for of, q in zip(layers, nested, strict=True)]
        cells = " | ".join(f"{e:.6f}" for e in errors)
        yield f"| {bits} | the first of 3, nested | {cells} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--write", action="store_true", help="write docs/results/binary-solver.md")
    given = parser.parse_args()
    lines = [
        "# The binary solver, step by step",
        "",
        "tr((W − Ŵ) H (W − Ŵ)ᵀ) / tr(W H Wᵀ) of three layers of a language model of 8.5 million",
        f"parameters, groups of 64 with offset, H from {SAMPLES} windows of 256 tokens. Seconds",
        "are of all three, on a machine that did other work too.",
        "Written by `bench/binary_solver.py`.",
        described(),
        "",
        *rows(given.models, given.data),
    ]
    finish(lines, result_page("binary-solver.md"), given.write)


if __name__ == "__main__":
    main()
