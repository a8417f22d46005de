"""BERT-base shape: the whole encoder through transformers, beside other engines.

    pip install ".[bench]"
    python bench/encoder.py [--target avx2] [--only int8] [--seconds 420] [--write]

Random weights. Each engine takes turns with torch's float32, with two threads and with one; a row
is printed when it is measured. Engines with threads of their own run in processes of their own;
what is not installed is left out, by name. At the end one pass of ours is taken apart by module.
"""

import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import targets
import torch
import transformers
from apart import Apart
from engines import Encoder, of_torch, onnx_runtime_int8, openvino, torch_bfloat16, torch_dynamic
from machine import Page, described
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from turns import Budget, in_turns, ready, seconds, times_faster

import lowbit
from lowbit.errors import UsageError
from lowbit.inspect.environment import processor
from lowbit.nn import QuantLinear

THREADS, SIZES = (2, 1), ((1, 128), (8, 128))
OWN = "its own attention"
# int8-all-dynamic, the default, has the speed of int8-dynamic: they differ in embeddings alone.
RECIPES = (
    "int8-dynamic",
    "int4-dynamic",
    "int8-static",
    "int8",
    "int4",
    "bcq3-dynamic",
    "bcq2-dynamic",
    "bcq3",
)


@dataclass(frozen=True)
class Engine:
    """make: for so many threads, a function from ids to the last hidden state; it ends what it
    started. held: the instruction set that it keeps to."""

    make: Callable[[int], "Iterator[Encoder]"]
    held: str


def ours(model: BertModel, recipe: str, attention: str) -> BertModel:
    model = copy.deepcopy(model)
    ids = torch.randint(model.config.vocab_size, (8, 128)) if recipe.endswith("static") else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    model.set_attn_implementation(attention)
    return model


def here(make: Callable[[], Encoder]) -> Callable[[int], Iterator[Encoder]]:
    """An engine of this process, whose threads are torch's."""
    return lambda threads: iter([make()])


def apart(make: Callable[..., Encoder], model: BertModel, folder: Path, *rest: object):
    def run(threads: int) -> Iterator[Encoder]:
        engine = Apart(threads, make, model, folder, threads, *rest)
        try:
            yield engine
        finally:
            engine.close()

    return run


def engines(model: BertModel, folder: Path, target: str) -> dict[str, Engine]:
    """Those that take long to be made come first: the rest share what is left of the time."""
    found: dict[str, Engine] = {}
    free = targets.CANNOT_BE_HELD if targets.forced() else "its choice"
    held = target if targets.forced() else "its choice"
    products = f"products {target}" if targets.forced() else "its choice"
    found["torch quantize_dynamic"] = Engine(here(lambda: torch_dynamic(model)), free)
    found["torch bfloat16"] = Engine(here(lambda: torch_bfloat16(copy.deepcopy(model))), held)
    found["ONNX Runtime int8 dynamic"] = Engine(apart(onnx_runtime_int8, model, folder), free)
    found["OpenVINO float32"] = Engine(apart(openvino, model, folder, False), products)
    found["OpenVINO static int8"] = Engine(apart(openvino, model, folder, True), products)
    best = RECIPES[0]
    own = partial(ours, model, best, "lowbit")
    found[f"lowbit {best}, {OWN}"] = Engine(here(lambda: of_torch(own())), target)
    for recipe in RECIPES:
        make = partial(ours, model, recipe, "sdpa")
        found[f"lowbit {recipe}"] = Engine(here(lambda make=make: of_torch(make())), target)
    return found


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def relative_error(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


def measure(float_model: BertModel, run: Encoder, ids: Tensor, budget: float) -> str:
    """Cells: milliseconds of the engine and of float32, their ratio, and the engine's error."""
    reference = of_torch(float_model)
    error = relative_error(run(ids[:1]), reference(ids[:1]))
    timed = run.timed if isinstance(run, Apart) else run
    taken = in_turns({"float32": partial(reference, ids), "own": partial(timed, ids)}, budget)
    ms = {name: statistics.median(times) * 1e3 for name, times in taken.items()}
    ratio = times_faster(taken["float32"], taken["own"])
    rounds = len(taken["own"])
    return f"{ms['own']:.1f} | {ms['float32']:.1f} | {ratio:.2f} | {error:.4f} | {rounds} |"


def taken_apart(model: nn.Module, ids: Tensor, rounds: int) -> list[str]:
    """Table rows: milliseconds inside the modules of each kind, less those nested in them."""
    kinds: dict[str, Callable[[nn.Module], bool]] = {
        "products and GELU (QuantLinear)": lambda m: isinstance(m, QuantLinear),
        "LayerNorm": lambda m: isinstance(m, nn.LayerNorm),
        "attention without its products": lambda m: type(m).__name__.endswith("SelfAttention"),
        "embeddings": lambda m: type(m).__name__ == "BertEmbeddings",
    }
    spent: dict[str, float] = defaultdict(float)
    open_calls: list[float] = []  # time spent in timed modules inside each open call
    handles = []
    for module in model.modules():
        kind = next((name for name, test in kinds.items() if test(module)), None)
        if kind is None:
            continue
        starts: list[float] = []

        def enter(*_: object, starts: list[float] = starts) -> None:
            open_calls.append(0.0)
            starts.append(time.perf_counter())

        def leave(*_: object, starts: list[float] = starts, kind: str = kind) -> None:
            taken = time.perf_counter() - starts.pop()
            spent[kind] += taken - open_calls.pop()
            if open_calls:
                open_calls[-1] += taken

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    best: tuple[float, dict[str, float]] = (float("inf"), {})
    for _ in range(rounds):
        spent.clear()
        total = seconds(partial(model, ids))
        best = min(best, (total, dict(spent)), key=lambda pair: pair[0])
    for handle in handles:
        handle.remove()
    total, parts = best
    parts["the rest (additions, Python)"] = total - sum(parts.values())
    return [f"| {kind} | {parts[kind] * 1e3:.2f} | {parts[kind] / total:.0%} |" for kind in parts]


def table(page: Page, model: BertModel, target: str, only: str, budget: float) -> None:
    page.say(
        "",
        "| processor | target | engine | threads | tokens | ms | torch float32, ms | × float32 |"
        " relative error | rounds |",
        "|---" * 10 + "|",
    )
    where = processor().partition(" (")[0]
    with tempfile.TemporaryDirectory() as folder:
        asked = {n: e for n, e in engines(model, Path(folder), target).items() if only in n}
        shared = Budget(budget, len(asked) * len(THREADS) * len(SIZES))
        for name, engine in asked.items():
            try:
                for threads in THREADS:
                    with threads_of(threads):
                        for run in engine.make(threads):
                            for batch, tokens in SIZES:
                                ids = torch.randint(0, 30_000, (batch, tokens))
                                cells = measure(model, run, ids, shared.share())
                                page.say(
                                    f"| {where} | {engine.held} | {name} | {threads} |"
                                    f" {batch} × {tokens} | {cells}"
                                )
            except (ImportError, UsageError) as error:
                shared.rows -= len(THREADS) * len(SIZES)
                page.say(f"| {where} | | {name}: left out ({error}) |")


def main() -> None:
    asked = targets.parser(__doc__)
    asked.add_argument("--only", default="", help="engines whose name has this in it")
    options = asked.parse_args()
    target = targets.enter(options.target)
    ready(max(THREADS))

    model = BertModel(BertConfig()).eval()
    page = Page(targets.page("encoder", target) if options.write else None)
    page.say(
        "# BERT-base shape, whole encoder",
        "",
        f"`python bench/encoder.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()}"
        f" transformers {transformers.__version__} (eager). Random weights. Medians; × float32 is"
        " the median of the ratios within a round.",
    )
    table(page, model, target, options.only, options.seconds)
    best = ours(model, RECIPES[0], "lowbit")
    page.say("", f"Where the time of lowbit {RECIPES[0]}, {OWN}, goes with two threads:")
    for batch, tokens in SIZES:
        parts = taken_apart(best, torch.randint(0, 30_000, (batch, tokens)), 5)
        page.say("", f"| {batch} × {tokens} tokens | ms | share |", "|---|---|---|", *parts)


if __name__ == "__main__":
    main()
