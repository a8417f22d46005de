"""How far a trained integer model is from its fake-quantized one; docs/results/qat-agreement.md.

    python bench/qat_agreement.py --work FOLDER [--data FOLDER] [--write]

Takes the int8 model of each task's first seed, as bench/qat.py trained it. The control is the
fake-quantized model against itself, its float32 steps once in float64: what they differ by, no two
implementations can be asked to stay under, unless they round alike to the last digit. A sum beside
the boundary between two codes then becomes the one or the other, and each such step is amplified by
the layers above.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import described, finish, result_page
from qat import MAX_LENGTH, SHARED, Run, planned
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.data import glue
from lowbit.data.batches import Texts
from lowbit.formats import StaticScale, fake_quantize
from lowbit.nn import QuantLinear
from lowbit.progress import tracked
from lowbit.qat.modules import FakeQuantLinear
from lowbit.qat.prepare import fake_quantized, prepare_qat

BATCH = 16


class Known(nn.Module):
    """Fake quantization with a scale that training found."""

    def __init__(self, static: StaticScale) -> None:
        super().__init__()
        self.static = static

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.static)[0]


def fake_model(run: Run, integer: PreTrainedModel) -> PreTrainedModel:
    """The fake-quantized model that training ended with: float weights, the integers' scales."""
    model = load_model(run.folder / "float")
    prepare_qat(model, "int8-static")
    for name, module in fake_quantized(model).items():
        stored = integer.get_submodule(name)
        if isinstance(module, FakeQuantLinear) and isinstance(stored, QuantLinear):
            static = stored.static_input()
            assert static is not None
            module.input_quantizer = Known(static)  # type: ignore[assignment]
    return model.eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, texts: Texts, name: str) -> Tensor:
    """[rows, labels], in the order of the rows."""
    found: dict[int, Tensor] = {}
    for rows, inputs in tracked(list(texts.batches(BATCH)), name, "batch", True):
        found |= dict(zip(rows, model(**inputs).logits.double(), strict=True))
    return torch.stack([found[row] for row in sorted(found)])


def differing(a: Tensor, b: Tensor) -> str:
    """Cells of a table: the relative distance of logits, and of rows that are predicted alike."""
    distance = f"{float((a - b).norm() / b.norm()):.4f}"
    if b.shape[1] == 1:
        return f"{distance} | "
    alike = (a.argmax(1) == b.argmax(1)).double().mean()
    return f"{distance} | {float(alike):.2%}"


def row(run: Run) -> str:
    tokenizer = load_tokenizer(run.folder / "int8")
    (dev,) = glue.read(run.task, "dev", run.data)
    texts = Texts(dev.sentences, tokenizer, MAX_LENGTH)
    integer = load_model(run.folder / "int8")
    fake = fake_model(run, integer)
    name = f"{run.task} {run.seed}"
    integers = logits(integer, texts, f"{name} integers")
    single = logits(fake, texts, f"{name} fake-quantized")
    double = logits(fake.double(), texts, f"{name} float64")
    unquantized = logits(load_model(run.folder / "float"), texts, f"{name} float")
    pairs = (integers, single), (double, single), (unquantized, single)
    return f"| {run.task} | {run.seed} | " + " | ".join(differing(*pair) for pair in pairs) + " |"


def page(runs: list[Run]) -> Iterator[str]:
    yield "# Integers and fake quantization\n"
    yield "Relative distance of the logits on the dev set, and rows with the same prediction,"
    yield "beside the fake-quantized model in float32; written by `bench/qat_agreement.py`."
    yield "*integers*: the int8 kernels. *float64*: the same fake-quantized model, its products,"
    yield "attention and normalization in float64. *float*: the trained weights, not quantized.\n"
    yield described() + "\n"
    yield "| task | seed | integers | same | float64 | same | float | same |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from (row(run) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--write", action="store_true", help="write docs/results/qat-agreement.md")
    given = parser.parse_args()
    planned_first = reversed([run for run in planned(given.work, given.data) if run.arm == "int8"])
    first = {run.task: run for run in planned_first}
    runs = [run for run in first.values() if run.finished]
    finish(list(page(runs)), result_page("qat-agreement.md"), given.write)


if __name__ == "__main__":
    main()
