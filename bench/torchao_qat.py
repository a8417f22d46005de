"""torchao's quantization-aware training beside ours; docs/results/torchao-qat.md.

    python bench/torchao_qat.py --work FOLDER [--data FOLDER] [--train] [--measure] [--write]

From the float model that bench/ner.py trained in the same folder, each of both trains towards
integers, on the same layers, with the same batches, steps, seed and optimizer: int8 activations
found per token, and 8-bit weights per row, or 4-bit weights in groups of 64. Then what training saw
is compared with the integers. With --train, what is missing is made; it may be killed at any time
and goes on with the next model. With --measure, time and memory are taken, which wants a quiet
machine. Needs `pip install torchao`.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchao
from apart import called_apart
from fine_tuned import FineTuned, options
from machine import described, finish, result_page
from ner import SHARED, studies
from pieces import Pieces
from torch import nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import QATConfig
from training_cost import MEBI, batches_of, peak
from transformers import PreTrainedModel, set_seed
from turns import take_turns

from lowbit.checkpoint.load import load_model
from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.evaluation.bootstrap import loss
from lowbit.evaluation.study import Measurement, json_safe, structured
from lowbit.evaluation.task import Subject
from lowbit.qat.prepare import finish_qat, prepare_qat
from lowbit.training.ending import FLOAT
from lowbit.training.lesson import Lesson

STEPS, RATE, WARMUP = 94, 1e-5, 0.1  # half an epoch
SEED = 1
ROUNDS, MEMORY_STEPS = 5, 4
PAGE = "torchao-qat.md"
Finish = Callable[[], object]


def study_of(work: Path, data: Path) -> FineTuned:
    return studies(work, data, Pieces(work / "rows.jsonl"))[0]


def with_lowbit(recipe: str) -> Callable[[PreTrainedModel], Finish]:
    """Prepares a model, in place; returns what makes integers of it."""

    def prepare(model: PreTrainedModel) -> Finish:
        prepare_qat(model, recipe)
        return lambda: finish_qat(model, progress=False)

    return prepare


def with_torchao(bits: torch.dtype, recipe: str) -> Callable[[PreTrainedModel], Finish]:
    """The same, of the layers that our recipe quantizes."""

    def prepare(model: PreTrainedModel) -> Finish:
        names = {decision.name for decision in make_plan(model, load_recipe(recipe)).owners}
        width = PerAxis(0) if bits == torch.int8 else PerGroup(64)
        config = Int8DynamicActivationIntxWeightConfig(weight_dtype=bits, weight_granularity=width)

        def chosen(module: nn.Module, name: str) -> bool:
            return name in names

        quantize_(model, QATConfig(config, step="prepare"), filter_fn=chosen)
        return lambda: quantize_(model, QATConfig(config, step="convert"), filter_fn=chosen)

    return prepare


ARMS: dict[str, Callable[[PreTrainedModel], Finish]] = {
    "lowbit, 8 bits": with_lowbit("int8-dynamic"),
    "torchao, 8 bits": with_torchao(torch.int8, "int8-dynamic"),
    "lowbit, 4 bits": with_lowbit("int4-dynamic"),
    "torchao, 4 bits": with_torchao(torch.int4, "int4-dynamic"),
}
NAMES = {"float": None, **{name: name for name in ARMS}}
COSTS = ["steps", "forward", *(f"peak {name}" for name in NAMES)]


def trained(name: str, study: FineTuned) -> dict[str, Any]:
    """What the task finds of the model that training saw, and of its integers."""
    model = load_model(study.float_folder)
    make_integers = ARMS[name](model)
    learn(model, study.lesson)
    subject = Subject(name, model, study.material.tokenizer)
    fake = study.score.measure(subject)
    make_integers()
    found = {"fake": fake, "integers": study.score.measure(subject)}
    return {key: json_safe(asdict(measured)) for key, measured in found.items()}


def learn(model: nn.Module, lesson: Lesson) -> None:
    """AdamW with a linear schedule; the same batches and dropout for everyone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    warm = WARMUP * STEPS

    def share(step: int) -> float:
        return min((step + 1) / warm, (STEPS - step) / (STEPS - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    set_seed(SEED)
    model.train()
    for batch in batches_of(lesson, STEPS):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def rows(study: FineTuned, pieces: Pieces) -> Iterator[str]:
    base = study.find(FLOAT).measurement
    yield "| model | F1 as trained | F1 of integers | loss, % | interval | words alike |"
    yield "|---|---|---|---|---|---|"
    yield f"| float | {100 * base.metrics['f1'].value:.2f} | | | | |"
    for name in ARMS:
        if name in pieces.found:
            found = pieces.found[name]
            fake, integers = (structured(Measurement, found[key]) for key in ("fake", "integers"))
            lost = loss(study.score, base, integers)
            assert lost is not None
            f1 = (100 * each.metrics["f1"].value for each in (fake, integers))
            yield (
                f"| {name} | {next(f1):.2f} | {next(f1):.2f} | {lost.percent:+.2f}"
                f" | {lost.low:+.2f} … {lost.high:+.2f} | {alike(fake, integers):.2%} |"
            )


def alike(a: Measurement, b: Measurement) -> float:
    """The share of words with the same label."""
    words = [" ".join(map(str, each.predictions)).split(" ") for each in (a, b)]
    return sum(x == y for x, y in zip(*words, strict=True)) / len(words[0])


def stepping(name: str | None, study: FineTuned, count: int) -> Callable[[], None]:
    """One model in training; each call is a step."""
    model = load_model(study.float_folder)
    if name is not None:
        ARMS[name](model)
    model.train()
    batches = iter(batches_of(study.lesson, count))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def step() -> None:
        with torch.enable_grad():
            model(**next(batches)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_of(name: str | None, work: Path, data: Path) -> Callable[[], int]:
    def run() -> int:
        before = peak()
        step = stepping(name, study_of(work, data), MEMORY_STEPS)
        for _ in range(MEMORY_STEPS):
            step()
        return peak() - before

    return run


def memory(name: str | None, given: argparse.Namespace) -> int:
    return int(called_apart(given.threads, peak_of, name, given.work, given.data))


def step_times(study: FineTuned) -> dict[str, list[float]]:
    """Seconds of each round, all in turns."""
    return take_turns({n: stepping(arm, study, ROUNDS + 1) for n, arm in NAMES.items()}, ROUNDS)


def forward_times(study: FineTuned) -> dict[str, list[float]]:
    """Of what is used in the end, on 128 sentences."""
    (inputs,) = study.calibration()
    models = {called: load_model(study.float_folder) for called in NAMES}
    for called, arm in NAMES.items():
        if arm is not None:
            ARMS[arm](models[called])()
    runs = {called: partial(model.eval(), **inputs) for called, model in models.items()}
    with torch.inference_mode():
        return take_turns(runs, ROUNDS)


def cost_rows(pieces: Pieces) -> Iterator[str]:
    steps, forward = pieces.found["steps"], pieces.found["forward"]
    peaks = {name: pieces.found[f"peak {name}"] for name in NAMES}

    def beside(taken: dict[str, list[float]], called: str) -> str:
        pairs = zip(taken[called], taken["float"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        return f"{1e3 * statistics.median(taken[called]):.0f} | {ratio:.2f}"

    yield "| model | step, ms | × | MiB | × | forward, ms | × |"
    yield "|---|---|---|---|---|---|---|"
    for called in NAMES:
        grown = f"{peaks[called] / MEBI:.0f} | {peaks[called] / peaks['float']:.2f}"
        yield f"| {called} | {beside(steps, called)} | {grown} | {beside(forward, called)} |"


def page(study: FineTuned, pieces: Pieces) -> Iterator[str]:
    yield "# torchao's quantization-aware training beside ours\n"
    yield "All-MiniLM-L6-v2, which learned to tag words in float ([the data](ner.md)), is"
    yield f"trained on towards integers by each, for {STEPS} steps in float32, with the same"
    yield f"batches, seed ({SEED}), optimizer and layers; written by"
    yield "`bench/torchao_qat.py`. Activations:"
    yield "8 bits per token (torchao's with a zero point, ours without). 8-bit weights: per"
    yield "row, symmetric. 4-bit ones: in groups of 64 (ours with a zero point). loss: of the"
    yield "float model's F1; its 95 % interval is by a paired bootstrap over sentences. words"
    yield "alike: that the integers label as the model did in training.\n"
    yield f"{described()} torchao {torchao.__version__}.\n"
    yield from rows(study, pieces)
    if pieces.found.keys() >= set(COSTS):
        yield "\nA step of training (batch 32), and a forward pass of what is used in the end (128"
        yield f"sentences), all in turns, {ROUNDS} rounds: ms is the median, × the median of the"
        yield "ratios within a round, which other work on the machine disturbs less. MiB: what"
        yield "training adds to a fresh process. torchao's"
        yield "converted layers decode their weights and multiply in float32 here: they compute"
        yield "what training computed, to the bit. Ours multiply integers.\n"
        yield from cost_rows(pieces)
    if absent := [name for name in ARMS if name not in pieces.found]:
        yield f"\nNot trained yet: {'; '.join(absent)}."


def main() -> None:
    parser = options(__doc__, SHARED, PAGE)
    parser.add_argument("--measure", action="store_true", help="time and memory too")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    study, pieces = study_of(given.work, given.data), Pieces(given.work / "torchao.jsonl")
    for name in ARMS if given.train else ():
        pieces.find(name, lambda name=name: trained(name, study))
    if given.measure:
        pieces.find("steps", lambda: step_times(study))
        pieces.find("forward", lambda: forward_times(study))
        for name, arm in NAMES.items():
            pieces.find(f"peak {name}", lambda arm=arm: memory(arm, given))
    finish(list(page(study, pieces)), result_page(PAGE), given.write)


if __name__ == "__main__":
    main()
