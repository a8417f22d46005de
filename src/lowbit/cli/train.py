"""`lowbit train`: one sub-command for each task."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import Annotated, Any

import typer

from lowbit.cli.freed_memory import keep_freed_memory
from lowbit.cli.screen import say
from lowbit.cli.settings_file import with_bare
from lowbit.cli.spread import spread
from lowbit.cli.train_options import (
    DEFAULT,
    VOCABULARY,
    Codes,
    Files,
    Integers,
    Learning,
    Reading,
    Run,
    Sizes,
    refuse,
    typed,
)
from lowbit.cli.train_outcome import show
from lowbit.errors import UsageError
from lowbit.training.usual import EVERYTHING, MAX_LENGTH_OF_TASK, OF_TASK

# Multi30k (Elliott et al. 2016), English to German, as the hub has it.
USUAL_PAIRS = "bentrevett/multi30k"

Model = Annotated[str, typer.Argument(help="The float model to start from: folder or hub id.")]
Data = Annotated[str, typer.Option("--data", "--data-dir", help="A folder with the task's files.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


def train() -> None:
    """Train a model on a task, in float or towards integers, and save both.

    Example: `lowbit train glue ./bert --name mrpc --qat int8 --data-dir ./MRPC -o ./out`
    """


app.callback()(train)


def task(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a function a sub-command, with the defaults that its task has."""
    name = verb.__name__.replace("_", "-")
    usual = OF_TASK.get(name, DEFAULT)
    defaults = {field.name: getattr(usual, field.name) for field in fields(Learning)}
    if name in MAX_LENGTH_OF_TASK:
        defaults["max_length"] = MAX_LENGTH_OF_TASK[name]
    app.command(name, cls=with_bare("--qat", EVERYTHING))(spread(verb, defaults))
    return verb


@task
def glue(
    model: Model,
    run: Run,
    name: Annotated[str, typer.Option("--name", help="The GLUE task: cola, mrpc, …")],
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--data-dir",
            help="A folder with train.tsv and dev.tsv.",
            show_default="the hub's",
        ),
    ] = None,
) -> None:
    """Learn a GLUE task: classify sentences or pairs of sentences.

    Example: `lowbit train glue ./bert --name mrpc --qat int8 --data-dir ./MRPC -o ./out`
    """
    _learn("glue", model, data, run, reading, learning, integers, codes, subset=name)


@task
def squad(
    model: Model,
    run: Run,
    data: Data,
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens that two windows share.", show_default="a third of --max-length"),
    ] = None,
) -> None:
    """Learn to answer questions: SQuAD 1.1, train*.json and dev*.json.

    Example: `lowbit train squad ./bert --qat int8 --data-dir ./squad -o ./out`
    """
    _learn("squad", model, data, run, reading, learning, integers, codes, stride=stride)


@task
def token_classification(
    model: Model,
    run: Run,
    data: Data,
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
) -> None:
    """Learn to label words: files of CoNLL 2003's form, a word and its label a line.

    Example: `lowbit train token-classification ./bert --qat int8 --data-dir ./conll -o ./out`
    """
    _learn("token-classification", model, data, run, reading, learning, integers, codes)


@task
def language(
    model: Model,
    run: Run,
    data: Data,
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
) -> None:
    """Learn to continue text: train.txt and valid.txt.

    Example: `lowbit train language ./gpt2 --data ./text --bcq 3 --distill 0.5 -o ./out`
    """
    _learn("language", model, data, run, reading, learning, integers, codes)


@task
def translation(
    run: Run,
    files: Files,
    sizes: Sizes,
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
    model: Annotated[
        str | None,
        typer.Argument(help="The float model to start from.", show_default="a new translator"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--data-dir",
            help="A folder with train.tsv and valid.tsv, or a file.",
            show_default=f"{USUAL_PAIRS} of the hub",
        ),
    ] = None,
) -> None:
    """Learn to translate, from an encoder–decoder or from nothing.

    Example: `lowbit train translation --data ./spa-eng --vocabulary 6000 --width 192 -o ./float`
    """
    from lowbit.training.lesson import Pairs

    if model is None:
        refuse(
            {} if reading.lower_case is None else {"lower_case": 0},
            "is of MODEL's tokenizer: a new one keeps cases",
        )
    else:
        refuse(typed(sizes), "is of a new translator: MODEL has its own")
    _learn(
        "translation",
        model,
        data,
        run,
        reading,
        learning,
        integers,
        codes,
        sizes=sizes,
        pairs=Pairs(**vars(files)),
    )


def _learn(
    name: str,
    model: str | None,
    data: str | None,
    run: Run,
    reading: Reading,
    learning: Learning,
    integers: Integers,
    codes: Codes,
    sizes: Sizes | None = None,
    **more: Any,
) -> None:
    """Train, and print what came of it. model: None for a new translator of these `sizes`."""
    from lowbit.checkpoint.documents import read_json
    from lowbit.checkpoint.load import load_tokenizer
    from lowbit.progress import without_load_reports
    from lowbit.training.lesson import Material
    from lowbit.training.settings import Settings
    from lowbit.training.train import DONE, check_begin, claiming
    from lowbit.training.train import train as run_training
    from lowbit.training.translation import new_tokenizer

    settings = Settings(
        qat=integers.qat, plan=codes.plan(), options=integers.options(), **vars(learning)
    )
    silent = run.quiet or run.as_json
    keep_freed_memory()
    check_begin(run.output, settings, run.resume, run.overwrite)
    # From here on, so that a second run is told before it loads anything.
    with claiming(run.output), without_load_reports() if silent else nullcontext():
        if name == "translation" and data is None:
            data = default_data(run.quiet)
        if model is None:
            assert sizes is not None
            start: Any = sizes.made(reading.dropout)
            words = VOCABULARY if sizes.vocabulary is None else sizes.vocabulary
            tokenizer = new_tokenizer(data, more["pairs"], words, reading.max_length)
        else:
            start, tokenizer = model, load_tokenizer(model, reading.lower_case)
        if tokenizer is None:
            raise UsageError(f"{model} has no tokenizer")
        material = Material(
            start,
            tokenizer,
            data,
            max_length=reading.max_length,
            attention_dropout=reading.attention_dropout,
            dropout=reading.dropout,
            **more,
        )
        outcome = run_training(
            name,
            material,
            run.output,
            settings,
            run.resume,
            run.overwrite,
            progress=not silent,
            baseline=run.baseline,
            keep_checkpoints=run.keep_checkpoints,
        )
    if not run.as_json:
        show(outcome, run.quiet)
    elif outcome.folders:
        print(json.dumps(read_json(run.output / DONE)))


def default_data(quiet: bool) -> str:
    """The hub's pairs, which are learned from if no others are named.

    Raises UsageError if the hub may not be asked.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "translation needs --data: a folder with train.tsv and valid.tsv, a file, …; without"
            f" it {USUAL_PAIRS} is fetched, and HF_HUB_OFFLINE forbids that"
        )
    if not quiet:
        say(
            f"no --data: fetching {USUAL_PAIRS} (29,000 pairs, 5 MB) from huggingface.co",
            error=True,
        )
    return USUAL_PAIRS
