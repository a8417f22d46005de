"""Encoders as native programs (`lowbit.compile`), beside the model itself and other engines.

    pip install ".[bench]"
    python bench/runtime.py [--target avx2] [--only MiniLM] [--seconds 420] [--write]

Random weights in the shapes of BERT-base and of all-MiniLM-L6-v2. *Sentences* are 640 of the
lengths that short sentences have, in batches of 32 of about the same length, padded on the right:
other engines compute the padding. Each engine takes turns with torch's float32; a row is printed
when it is measured. At the end a program is printed, and what its products take of it.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import targets
import torch
import transformers
from apart import Apart
from encoder import relative_error, threads_of
from engines import onnx_runtime_int8, openvino
from machine import Page, described
from torch import Tensor
from transformers import BertConfig, BertModel
from turns import Seconds, in_turns, ready, seconds, times_faster

import lowbit
from lowbit.errors import UsageError
from lowbit.inspect.environment import processor
from lowbit.kernels.linear.native import in_place
from lowbit.runtime.operations import Linear, Sequences

THREADS = (2, 1)
RECIPES = ("int8-static", "int8-dynamic", "int4-dynamic")
SENTENCES, AT_ONCE, SEED = 640, 32, 0


def minilm() -> BertConfig:
    return BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )


@dataclass(frozen=True)
class Job:
    """batches: ids and masks."""

    model: str
    name: str
    config: Callable[[], BertConfig]
    batches: tuple[tuple[Tensor, Tensor], ...]


def full(batch: int, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    ids = torch.randint(5, 30_000, (batch, length))
    return ((ids, torch.ones_like(ids)),)


def sentences() -> tuple[tuple[Tensor, Tensor], ...]:
    generator = torch.Generator().manual_seed(SEED)
    normal = torch.randn(SENTENCES, generator=generator)
    lengths = (2.6 + 0.45 * normal).exp().round().clamp(5, 64).long().sort().values
    batches = []
    for some in lengths.split(AT_ONCE):
        mask = (torch.arange(int(some.max())) < some[:, None]).long()
        batches.append((torch.randint(5, 30_000, mask.shape) * mask, mask))
    return tuple(batches)


def jobs() -> list[Job]:
    return [
        Job("MiniLM", "1 × 12", minilm, full(1, 12)),
        Job("MiniLM", f"{SENTENCES} sentences", minilm, sentences()),
        Job("BERT-base", "1 × 128", BertConfig, full(1, 128)),
        Job("BERT-base", "8 × 128", BertConfig, full(8, 128)),
    ]


Engine = Callable[[int], Iterator[Callable[[Tensor, Tensor], Any]]]


def of_model(make: Callable[[], BertModel]) -> Engine:
    def run(threads: int) -> Iterator[Callable[[Tensor, Tensor], Any]]:
        model = make()
        yield lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state

    return run


def float_program(model: BertModel) -> BertModel:
    return lowbit.compile(copy.deepcopy(model))


def ours(model: BertModel, recipe: str, compiled: bool) -> BertModel:
    model = copy.deepcopy(model)
    ids = torch.randint(model.config.vocab_size, (8, 128)) if recipe.endswith("static") else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    if compiled:
        return lowbit.compile(model)
    model.set_attn_implementation("lowbit")
    return model


def apart(make: Callable[..., Any], model: BertModel, folder: Path, *rest: object) -> Engine:
    def run(threads: int) -> Iterator[Callable[[Tensor, Tensor], Any]]:
        engine = Apart(threads, make, model, folder, threads, *rest)
        try:
            yield lambda ids, mask: engine.timed(ids)
        finally:
            engine.close()

    return run


def engines(model: BertModel, folder: Path) -> dict[str, Engine]:
    found: dict[str, Engine] = {
        "ONNX Runtime int8 dynamic": apart(onnx_runtime_int8, model, folder),
        "OpenVINO float32": apart(openvino, model, folder, False, True),
        "OpenVINO static int8": apart(openvino, model, folder, True, True),
    }
    for recipe in RECIPES:
        found[f"lowbit {recipe}, compiled"] = of_model(partial(ours, model, recipe, True))
    found["lowbit float32, compiled"] = of_model(partial(float_program, model))
    found["lowbit int8-dynamic"] = of_model(partial(ours, model, "int8-dynamic", False))
    return found


def timed(run: Callable[[Tensor, Tensor], Any], job: Job) -> Callable[[], object]:
    """A job once; one that is a single batch right after itself, as a server runs it."""

    def once() -> float:
        start = time.perf_counter()
        answers = [run(ids, mask) for ids, mask in job.batches]
        elsewhere = all(isinstance(answer, Seconds) for answer in answers)
        return sum(answers) if elsewhere else time.perf_counter() - start

    def call() -> object:
        taken = once()
        return Seconds(once() if len(job.batches) == 1 else taken)

    return call


def table(page: Page, target: str, only: str, budget: float) -> None:
    page.say(
        "",
        "| processor | target | model | job | engine | threads | ms | torch float32, ms |"
        " × float32 | rounds |",
        "|---" * 10 + "|",
    )
    where = processor().partition(" (")[0]
    asked = [job for job in jobs() if only in job.model]
    # Making engines takes time of its own.
    share = budget / (len(asked) * len(THREADS) * (len(RECIPES) + 5))
    for name in dict.fromkeys(job.model for job in asked):
        of_it = [job for job in asked if job.model == name]
        plain = BertModel(of_it[0].config()).eval()
        (reference,) = of_model(lambda plain=plain: plain)(1)
        with tempfile.TemporaryDirectory() as folder:
            for label, make in engines(plain, Path(folder)).items():
                try:
                    for threads in THREADS:
                        with threads_of(threads):
                            for run in make(threads):
                                for job in of_it:
                                    runs = {"float": timed(reference, job), "own": timed(run, job)}
                                    taken = in_turns(runs, share)
                                    ms = {k: statistics.median(t) * 1e3 for k, t in taken.items()}
                                    page.say(
                                        f"| {where} | {target} | {name} | {job.name} | {label} |"
                                        f" {threads} | {ms['own']:.2f} | {ms['float']:.1f} |"
                                        f" {times_faster(taken['float'], taken['own']):.2f} |"
                                        f" {len(taken['own'])} |"
                                    )
                except (ImportError, UsageError) as error:
                    page.say(f"| {where} | | {name} | | {label}: left out ({error}) |")


def products_alone(program: Any, tokens: int) -> Callable[[], None]:
    """The linear layers of a program, one after the other."""
    runs = []
    for op in program.operations:
        if isinstance(op, Linear):
            ys = [torch.empty(tokens, layer.out_features) for layer in op.layers]
            weights = [(call.weight.bytes, call.bias) for call in op.calls]
            x = torch.randn(tokens, op.layers[0].in_features)
            runs.append((in_place([call.product for call in op.calls], weights, ys), x))

    def call() -> None:
        for run, x in runs:
            run(x.data_ptr())

    return call


def taken_apart(page: Page) -> None:
    """What products take of a call, and what the compiled model's results differ from its own."""
    plain = BertModel(BertConfig()).eval()
    model = ours(plain, "int8-dynamic", True)
    ((ids, mask),) = full(1, 128)
    start = time.perf_counter()
    y = model(input_ids=ids, attention_mask=mask).last_hidden_state
    made = time.perf_counter() - start
    (compiled,) = model.forward.programs.made.values()
    program = compiled.lowered.program
    eager = ours(plain, "int8-dynamic", False)(input_ids=ids, attention_mask=mask)
    page.say(
        "",
        f"BERT-base, int8-dynamic, 1 × 128: captured, compiled and called in {made:.1f} s;"
        f" {program.bytes_per_token} bytes a token in between; relative difference from the model"
        f" itself {relative_error(y, eager.last_hidden_state):.1e}.",
        "",
        "| threads | call, ms | program alone, ms | its products alone, ms | outside products |",
        "|---" * 5 + "|",
    )
    places = torch.arange(128)
    call = Sequences(
        torch.tensor([0, 128]), places, [ids.flatten(), torch.zeros_like(places), places], []
    )
    for threads in THREADS:
        with threads_of(threads):
            runs = {
                "call": lambda: model(input_ids=ids, attention_mask=mask),
                "program": lambda: program.run(call, []),
                "products": products_alone(program, 128),
            }
            taken = {
                name: statistics.median(seconds(run) for _ in range(15))
                for name, run in runs.items()
            }
            ms = " | ".join(f"{t * 1e3:.2f}" for t in taken.values())
            outside = 1 - taken["products"] / taken["call"]
            page.say(f"| {threads} | {ms} | {outside:.0%} |")


def main() -> None:
    asked = targets.parser(__doc__)
    asked.add_argument("--only", default="", help="models whose name has this in it")
    options = asked.parse_args()
    target = targets.enter(options.target)
    ready(max(THREADS))
    page = Page(targets.page("runtime", target) if options.write else None)
    page.say(
        "# Encoders as native programs",
        "",
        f"`python bench/runtime.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()}"
        f" transformers {transformers.__version__}. Random weights; medians, × float32 is the"
        " median of the ratios within a round. Held to a target: lowbit, torch, and OpenVINO's"
        " products; ONNX Runtime takes what the processor has.",
    )
    table(page, target, options.only, options.seconds)
    taken_apart(page)


if __name__ == "__main__":
    main()
