"""What each solver makes of each bit; written to docs/results/accuracy-per-bit.md.

    python bench/accuracy_per_bit.py [--data FOLDER] [--models FOLDER] [--only TEXT] [--write]

A language model of 8.5 million parameters trained on WikiText-2, its linear layers quantized and
its table kept in float. Rows that are measured are kept (--keep FILE, beside the page), so that an
interrupted run goes on, and another can add to it; --write makes the page of all that are there.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from machine import described, finish, result_page
from mean_squares import mean_squares
from torch import nn

import lowbit
from lowbit import Recipe, Rule, ZeroPoint
from lowbit.calibration import texts
from lowbit.checkpoint.atomic_write import staged_file
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.conversion.module_weights import oriented
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.evaluation.divergence import divergence
from lowbit.evaluation.perplexity import perplexity
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.perplexity import Perplexity
from lowbit.formats import group
from lowbit.nn import QuantModule
from lowbit.search.budget import Budget
from lowbit.search.search import search

SHARED = Path(__file__).parents[2] / "shared"
CONTEXT = 256
DIVERGENCE_BLOCKS = 50
# By the name of a row: a solver, and whether it reads the calibration text.
SOLVERS: dict[str, tuple[str | dict[str, Any], bool]] = {
    "gptq": ("gptq", True),
    "gptq, tuned": ({"name": "gptq", "tune": 4}, True),
    "autoround": ("autoround", True),
    "autoround, tuned": ({"name": "autoround", "tune": 4}, True),
    "gptq, rotated": ({"name": "gptq", "rotate": True}, True),
    "nearest, rotated": ({"name": "nearest", "rotate": True}, True),
    "hqq": ("hqq", False),
    "awq": ("awq", True),
    "nearest": ("nearest", False),
}
# Of binary codes: alternating least squares by itself, and compensated from data.
BINARY_SOLVERS: dict[str, tuple[str | dict[str, Any], bool]] = {
    "binary codes": ("nearest", False),
    "binary codes, compensated": ("binary", True),
    "binary codes, compensated, tuned": ({"name": "binary", "tune": 4}, True),
}
# Groups that come nearest to the bits of llama.cpp's types at the same width, from below: where
# rows have 256 inputs, one group more in 3 bits is more than Q3_K has.
FILLED = {4: 52, 2: 43}
FILLING = ("gptq", "gptq, tuned")
# Bits of linear layers that llama.cpp's Q2_K, Q3_K and Q4_K take, and of whole models.
LIKE_PEERS, WHOLE = (2.625, 3.4375, 4.5), (3.5, 4.5)
PEERS = ("Q4_K", "Q3_K", "Q2_K", "IQ3_S", "Q4_0", "Q8_0")


@dataclass(frozen=True)
class Row:
    """One measurement. bits: of the linear layers' weights, scales included."""

    name: str
    bits: float
    perplexity: float
    kl: float
    top1: float
    seconds: float


class Bench:
    def __init__(self, models: Path, data: Path, blocks: int, samples: int, keep: Path) -> None:
        folder = models / "gpt2-wikitext2"
        self.model, self.tokenizer = load_model(folder), load_tokenizer(folder)
        self.data, self.blocks, self.samples = data / "wikitext-2", blocks, samples
        self.keep, self.settings = keep, {"blocks": blocks, "samples": samples}
        kept = json.loads(keep.read_text()) if keep.exists() else {**self.settings, "rows": []}
        rows = kept.pop("rows")
        if kept != self.settings:
            raise SystemExit(f"{keep} has rows of {kept}, not of {self.settings}: --keep another")
        self.rows = {row["name"]: Row(**row) for row in rows}
        self.found: dict[tuple[float, bool], Recipe] = {}  # by bits, and whether of everything

    @cached_property
    def ids(self) -> torch.Tensor:
        text = (self.data / "test.txt").read_text(encoding="utf-8")
        ids = torch.tensor(self.tokenizer(text, verbose=False).input_ids)
        return ids[: self.blocks * CONTEXT]

    @cached_property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        train = self.data / "train.txt"
        material = texts.read(train, self.model, self.tokenizer, self.samples, CONTEXT)
        return material.batches

    def measure(self, name: str, change: Callable[[nn.Module], float]) -> Row:
        """The row of that name: what is kept, or what is measured now of what `change` makes of a
        copy of the model. It returns the bits per weight of the linear layers."""
        if name not in self.rows:
            model = deepcopy(self.model)
            start = time.perf_counter()
            bits = change(model)
            seconds = time.perf_counter() - start
            value = perplexity(model, self.ids, CONTEXT)
            some = self.ids[: DIVERGENCE_BLOCKS * CONTEXT]
            found = divergence(model, self.model, some, CONTEXT)
            self.rows[name] = Row(name, bits, value, found.kl, found.top1, seconds)
            self.keep.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(self.keep) as unfinished:
                rows = [asdict(row) for row in self.rows.values()]
                unfinished.write_text(json.dumps({**self.settings, "rows": rows}))
        return self.rows[name]

    def solved(self, recipe: Recipe, name: str) -> Callable[[nn.Module], float]:
        solver, data = (SOLVERS | BINARY_SOLVERS)[name]

        def change(model: nn.Module) -> float:
            needs = {"calibration": self.batches} if data else {}
            lowbit.quantize(model, recipe, solver=solver, **needs)
            return linear_bits(model)

        return change

    def searched(self, bits: float, whole: bool, name: str) -> Callable[[nn.Module], float]:
        """Bits for each module so that they are `bits` on average: of the linear layers, or of the
        whole model."""

        def change(model: nn.Module) -> float:
            if (bits, whole) not in self.found:
                self.found[bits, whole] = self.search(bits, whole)
            return self.solved(self.found[bits, whole], name)(model)

        return change

    def search(self, bits: float, whole: bool) -> Recipe:
        """The recipe is solved by GPTQ in the search, and judged on the validation text."""
        model = deepcopy(self.model)
        widths = range(int(bits) - 1, int(bits) + 4)
        schemes = [ZeroPoint(width, group(64)) for width in widths if width > 1]
        keep = () if whole else ("@embedding", "@head")
        task = Perplexity(str(self.data / "valid.txt"), context=CONTEXT, samples=0)
        weights = sum(d.parameters for d in make_plan(model, load_recipe("int4")).quantized)
        left = lowbit.footprint(model).stored_bytes - 4 * weights
        budget = Budget(max_bits=bits) if whole else Budget(int(left + bits * weights / 8))
        subject = Subject("searched", model, self.tokenizer)
        return search(subject, budget, task, schemes, self.batches, keep, "gptq").best.recipe


def linear_bits(model: nn.Module) -> float:
    """Bits stored per weight of what is quantized, everything counted, a table that is tied to the
    head once."""
    stored: dict[int, int] = {}  # bytes by address
    weights: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, QuantModule):
            tensors = list(module.stored_weight.tensors().values())
            stored |= {t.data_ptr(): t.nbytes for t in tensors}
            weights[tensors[0].data_ptr()] = module.rows * module.columns
    return 8 * sum(stored.values()) / sum(weights.values())


Stored = Callable[[str, torch.Tensor], tuple[torch.Tensor, int]]


def replaced(model: nn.Module, stored: Stored) -> float:
    """Put what `stored` makes of each matrix in its place, as it is decoded; the bits of a weight,
    from the bytes that it takes."""
    size = weights = 0
    for decision in make_plan(model, load_recipe("int4")).quantized:
        weight = model.get_submodule(decision.name).weight
        matrix = oriented(weight.detach(), decision.weights).contiguous()
        decoded, taken = stored(decision.name, matrix)
        weight.data = oriented(decoded, decision.weights)
        size += taken
        weights += matrix.numel()
    return 8 * size / weights


def peer(
    kind: str, batches: Callable[[], list[dict[str, torch.Tensor]]] | None = None
) -> Callable[[nn.Module], float]:
    """A type of llama.cpp, by its own quantizer; with batches, by an importance matrix: mean x² of
    each input of the float model on them."""
    quantized = getattr(gguf.GGMLQuantizationType, kind)

    def change(model: nn.Module) -> float:
        squares = mean_squares(model, batches()) if batches is not None else {}

        def stored(name: str, matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
            packed = ggml_quantize(matrix.numpy(), quantized, squares.get(name))
            return torch.from_numpy(gguf.quants.dequantize(packed, quantized)), packed.nbytes

        return replaced(model, stored)

    return change


def normal_float(nested: bool) -> Callable[[nn.Module], float]:
    """NF4 by bitsandbytes (Dettmers et al. 2023); nested: scales in 8 bits."""

    def stored(name: str, matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # the peer itself

        packed, state = quantize_4bit(
            matrix, blocksize=64, quant_type="nf4", compress_statistics=nested
        )
        scales = [state.absmax] + ([state.state2.absmax] if nested else [])
        return dequantize_4bit(packed, state), sum(t.nbytes for t in (packed, *scales))

    return lambda model: replaced(model, stored)


def hqq_package(bits: int) -> Callable[[nn.Module], float]:
    """HQQ by its authors (Badri and Shaji 2023), scales and zero points in float16."""

    def stored(name: str, matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
        from hqq.core.quantize import Quantizer  # the peer itself

        packed, form = Quantizer.quantize(
            matrix, nbits=bits, group_size=64, axis=1, device="cpu", compute_dtype=torch.float16
        )
        form |= {name: form[name].half() for name in ("scale", "zero")}
        decoded = Quantizer.dequantize(packed, form).float()
        return decoded, sum(t.nbytes for t in (packed, form["scale"], form["zero"]))

    return lambda model: replaced(model, stored)


def torchao(bits: int) -> Callable[[nn.Module], float]:
    """torchao's integers with zero points. It holds codes in bytes: counted is what they would take
    packed."""

    def stored(name: str, matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, quantize_
        from torchao.quantization.granularity import PerGroup

        layer = nn.Linear(*reversed(matrix.shape), bias=False)
        layer.weight.data = matrix.clone()
        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=PerGroup(64),
            mapping_type=MappingType.ASYMMETRIC,
            scale_dtype=torch.float16,
        )
        quantize_(layer, config)
        weight = layer.weight
        parameters = weight.scale.nbytes + weight.zero_point.nbytes
        return weight.dequantize().float(), bits * matrix.numel() // 8 + parameters

    return lambda model: replaced(model, stored)


def ggml_quantize(
    matrix: np.ndarray, kind: gguf.GGMLQuantizationType, importance: np.ndarray | None
) -> np.ndarray:
    """The bytes of llama.cpp's own quantizer, one row per row."""
    import llama_cpp  # the peer itself, which only its rows need

    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    rows, columns = matrix.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.zeros((rows, columns // block * size), dtype=np.uint8)
    pointer = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        pointer = importance.ctypes.data_as(ctypes.c_void_p)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk(
        ctypes.c_int(int(kind)),
        matrix.ctypes.data_as(ctypes.c_void_p),
        packed.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        pointer,
    )
    return packed


def measurements(bench: Bench) -> Iterator[tuple[str, Callable[[nn.Module], float]]]:
    """What there is to measure, the most telling first."""
    yield "float32", lambda model: 32.0
    for solver in SOLVERS:
        for bits in (3, 2, 4):
            recipe = load_recipe(f"int{bits}")
            yield f"{solver}, {bits} bits, groups of 64", bench.solved(recipe, solver)
        if solver in FILLING:
            for bits, size in FILLED.items():
                yield (
                    f"{solver}, {bits} bits, groups of {size}",
                    bench.solved(in_groups(bits, size), solver),
                )
    for solver in FILLING:
        for bits in (4, 3):
            recipe = load_recipe(f"int{bits}-all")
            yield f"{solver}, table and head too, {bits} bits", bench.solved(recipe, solver)
    for solver in BINARY_SOLVERS:
        for bits in (3, 2):
            recipe = load_recipe(f"bcq{bits}")
            yield f"{solver}, {bits} bits, groups of 64", bench.solved(recipe, solver)
    for bits in LIKE_PEERS:
        for solver in FILLING:
            yield f"{solver}, searched, {bits} bits", bench.searched(bits, False, solver)
    for bits in WHOLE:
        for solver in FILLING:
            yield (
                f"{solver}, searched, table and head too, {bits} bits",
                bench.searched(bits, True, solver),
            )
    for kind in PEERS:
        yield f"llama.cpp {kind}", peer(kind)
    for nested in (False, True):
        name = "bitsandbytes NF4" + (", nested scales" if nested else "")
        yield name, normal_float(nested)
    for name, by in (("HQQ's own package", hqq_package), ("torchao", torchao)):
        for bits in (4, 3, 2):
            yield f"{name}, {bits} bits, groups of 64", by(bits)
    for kind in ("Q4_K", "Q3_K", "Q2_K"):
        yield f"llama.cpp {kind}, importance matrix", peer(kind, lambda: bench.batches)


def in_groups(bits: int, size: int) -> Recipe:
    rules = (Rule("@embedding"), Rule("@head"), Rule("@linear", ZeroPoint(bits, group(size))))
    return Recipe(rules, name=f"int{bits}-g{size}")


def page(bench: Bench, blocks: int, samples: int) -> Iterator[str]:
    before = bench.rows["float32"].perplexity
    yield "# Accuracy per bit"
    yield ""
    yield "The linear layers of a language model of 8.5 million parameters, in fewer bits; its"
    yield f"table stays float. Perplexity of the first {blocks} blocks of {CONTEXT} WikiText-2"
    yield "test tokens; KL divergence from the float model and agreement on the first"
    yield f"{DIVERGENCE_BLOCKS}. Bits count scales and zero points of what is quantized; what a row"
    yield "with table and head was searched for are bits of the whole model, with what stays float:"
    yield "norms and biases. Solvers that learn from data"
    yield f"saw {samples} windows of {CONTEXT} tokens of the training text. Seconds are of solving,"
    yield "on a machine that did other work too; a recipe is searched for once, by GPTQ, and the"
    yield "time is in that row. Written by `bench/accuracy_per_bit.py`."
    yield described()
    yield ""
    yield "| | bits/weight | perplexity | change | KL divergence | same first token | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(bench.rows.values(), key=lambda row: (-round(row.bits, 1), -row.kl)):
        yield (
            f"| {row.name} | {row.bits:.3f} | {row.perplexity:.3f} |"
            f" {row.perplexity / before - 1:+.2%} | {row.kl:.5f} | {row.top1:.2%} |"
            f" {row.seconds:.0f} |"
        )
    yield ""
    if any(name.startswith("llama.cpp") for name in bench.rows):
        yield "Rows of llama.cpp are its own quantizer's, of the same matrices."
    yield "What is not listed has not been measured yet."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--blocks", type=int, default=600)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    keep = result_page("accuracy-per-bit.json")
    parser.add_argument("--keep", type=Path, default=keep, help="where rows are kept")
    parser.add_argument("--write", action="store_true", help="write docs/results/")
    given = parser.parse_args()
    bench = Bench(given.models, given.data, given.blocks, given.samples, given.keep)
    for name, change in measurements(bench):
        if given.only in name or name == "float32":
            print(bench.measure(name, change), flush=True)
    lines = list(page(bench, given.blocks, given.samples))
    finish(lines, result_page("accuracy-per-bit.md"), given.write)


if __name__ == "__main__":
    main()
