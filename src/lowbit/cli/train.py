"""`lowbit train`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from huggingface_hub import constants
from rich import box
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from lowbit.checkpoint.load import load_tokenizer
from lowbit.cli.screen import Screen, say
from lowbit.cli.settings_file import from_file, shipped, with_bare
from lowbit.errors import UsageError
from lowbit.qat.prepare import QatOptions
from lowbit.training.architecture import KINDS, Architecture
from lowbit.training.bcq import PLANS, find_plan
from lowbit.training.lesson import Material, Pairs
from lowbit.training.settings import (
    EVERYTHING,
    MAX_LENGTH,
    MAX_LENGTH_OF_TASK,
    OF_TASK,
    SCHEDULES,
    Settings,
)
from lowbit.training.teachers import TEACHERS

if TYPE_CHECKING:
    from lowbit.training.ending import Outcome

DEFAULT, NEW = Settings(), Architecture()
OF_TASK_HELP = "The task's own by default."
VOCABULARY = 6000
CONFIGS = shipped("training/configs")
# Multi30k (Elliott et al. 2016), English to German, as the hub has it.
USUAL_PAIRS = "bentrevett/multi30k"
SETTINGS = {"cls": with_bare("--qat", EVERYTHING)}
# By the name in Python: the option as it is typed, and its value, None where it was not.
Options = Mapping[str, tuple[str, Any]]


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    task: Annotated[str, typer.Option(help=f"What to learn: {', '.join(TEACHERS)}.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A float model to start from: folder or hub id. A translator needs none."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "--data-dir", help="The task's files.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            callback=from_file(CONFIGS),
            is_eager=True,
            help=f"A YAML file of options, or one of {', '.join(CONFIGS)}: what is not typed.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The lines to be translated into; --data has the source.")
    ] = None,
    valid: Annotated[
        str | None, typer.Option(help="What a translator is scored on, if --data is a file.")
    ] = None,
    valid_target: Annotated[
        str | None, typer.Option(help="The lines that --valid is into.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="What a translator is scored on in the end; else test.tsv.")
    ] = None,
    test_target: Annotated[str | None, typer.Option(help="The lines that --test is into.")] = None,
    source_column: Annotated[
        int | None, typer.Option(help="Of a TSV, counted from 1; the first.")
    ] = None,
    target_column: Annotated[int | None, typer.Option(help="The other of the first two.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help=f"Subwords of a new translator; {VOCABULARY}.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help=f"Of a new translator: {', '.join(KINDS)}.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help=f"Of its encoder, and of its decoder; {NEW.layers}.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help=f"Of its embeddings and layers; {NEW.width}.")
    ] = None,
    feed_forward: Annotated[
        int | None, typer.Option(help=f"Inside its layers; {NEW.feed_forward}.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help=f"Of its attention; {NEW.heads}.")] = None,
    subset: Annotated[str | None, typer.Option("--name", help="The GLUE task: cola, …")] = None,
    qat: Annotated[
        str,
        typer.Option(
            help=f"Towards these integers: int8, int4, int8-dynamic, …; alone, {EVERYTHING}. none:"
            " float."
        ),
    ] = DEFAULT.qat,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train in float too, and tell what is lost.")
    ] = False,
    estimator: Annotated[
        str | None, typer.Option(help="Gradients through rounding: ste (else), clipped, lsq.")
    ] = None,
    ranges: Annotated[
        str | None,
        typer.Option(help="Of static activations: mse (else), ema, learned, minmax, percentile."),
    ] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of ema ranges; 0.9999.")] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric", help="Static activations without a zero point.")
    ] = None,
    qat_start: Annotated[
        int | None, typer.Option(help="Training passes that stay float; 0.")
    ] = None,
    bcq: Annotated[
        str | None,
        typer.Option(help=f"Towards binary codes: {', '.join(PLANS)}, or a recipe of such."),
    ] = None,
    project_every: Annotated[
        int | None, typer.Option(help="Steps between projections, 500 … 2000; 0: an epoch.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Of codes: greedy, alternating.")] = None,
    groups: Annotated[str | None, typer.Option(help="Of codes: channel, group:64, …")] = None,
    nested: Annotated[
        bool | None, typer.Option("--nested", help="Any precision: prefixes can be used alone.")
    ] = None,
    score_before: Annotated[
        bool | None,
        typer.Option(
            "--score-before/--no-score-before", help="Score before projections too; it does."
        ),
    ] = None,
    straight: Annotated[
        bool | None,
        typer.Option("--straight/--free", help="Between projections: codes, or floats."),
    ] = None,
    phases: Annotated[
        bool | None, typer.Option("--phases/--at-once", help="Embedding, decoder, encoder.")
    ] = None,
    frozen: Annotated[
        float | None, typer.Option(help="Share of steps, at the end, in which codes stay.")
    ] = None,
    distill: Annotated[
        float, typer.Option(help="Share of the loss: divergence from MODEL as it was.")
    ] = 0.0,
    learning_rate: Annotated[float | None, typer.Option(help=OF_TASK_HELP)] = None,
    epochs: Annotated[float | None, typer.Option(help=OF_TASK_HELP)] = None,
    max_steps: Annotated[int, typer.Option(help="0: whole epochs.")] = DEFAULT.max_steps,
    batch_size: Annotated[int | None, typer.Option(help=OF_TASK_HELP)] = None,
    accumulate: Annotated[int, typer.Option(help="Batches of one step.")] = DEFAULT.accumulate,
    max_length: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens of an example. {OF_TASK_HELP}")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Overlap of SQuAD's windows; a third of the length.")
    ] = None,
    warmup: Annotated[float, typer.Option(help="Share of all steps.")] = DEFAULT.warmup,
    schedule: Annotated[
        str | None, typer.Option(help=f"After it: {', '.join(SCHEDULES)}. {OF_TASK_HELP}")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help=f"Spread over all labels. {OF_TASK_HELP}")
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="Of AdamW; norms and biases have none.")
    ] = DEFAULT.weight_decay,
    dropout: Annotated[
        float | None, typer.Option(help="Else MODEL's own, and 0.1 in a new one.")
    ] = None,
    attention_dropout: Annotated[
        float, typer.Option(help="0 makes a step on a CPU several times faster.")
    ] = 0.0,
    lower_case: Annotated[
        bool | None, typer.Option("--lower-case/--keep-case", help="Else as the tokenizer does.")
    ] = None,
    evaluate_during_training: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Score while training; keep the best.")
    ] = True,
    eval_steps: Annotated[int, typer.Option(help="0: once an epoch.")] = DEFAULT.eval_steps,
    save_steps: Annotated[int, typer.Option(help="0: once an epoch.")] = DEFAULT.save_steps,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Also when training has finished.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where it can.")] = False,
    seed: Annotated[
        int, typer.Option(help="Of new weights, dropout and the order of examples.")
    ] = DEFAULT.seed,
    resume: Annotated[bool, typer.Option("--resume", help="From the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False,
) -> None:
    """Train a model on a task, in float or towards integers, and save both.

    Example: `lowbit train ./bert --task glue --name mrpc --qat int8 --data-dir ./MRPC -o ./out`
    """
    # Trainer takes long to import; no other command should wait for it.
    from lowbit.training.train import check_begin, claiming
    from lowbit.training.train import train as run
    from lowbit.training.translation import new_tokenizer

    most = max_length or MAX_LENGTH_OF_TASK.get(task, MAX_LENGTH)
    if model is None and task != "translation":
        raise UsageError(f"task {task} needs a model to start from")
    by_task: dict[str, Options] = {
        "glue": {"subset": ("--name", subset)},
        "squad": {"stride": ("--stride", stride)},
        "translation": {
            "target": ("--target", target),
            "valid": ("--valid", valid),
            "valid_target": ("--valid-target", valid_target),
            "test": ("--test", test),
            "test_target": ("--test-target", test_target),
            "source_column": ("--source-column", source_column),
            "target_column": ("--target-column", target_column),
        },
    }
    for other, options in by_task.items():
        if other != task:
            _refuse(options, f"is of --task {other}, not of {task}")
    pairs = Pairs(**_given(by_task["translation"]))
    sizes = {
        "kind": ("--architecture", architecture),
        "layers": ("--layers", layers),
        "width": ("--width", width),
        "feed_forward": ("--feed-forward", feed_forward),
        "heads": ("--heads", heads),
    }
    if model is None:
        _refuse(
            {"": ("--lower-case", lower_case)}, "is of MODEL's tokenizer: a new one keeps cases"
        )
    else:
        _refuse(sizes, "is of a new translator: MODEL has its own")
        _refuse({"": ("--vocabulary", vocabulary)}, "is of a new translator: MODEL has its own")
    of_codes = {
        "every": ("--project-every", project_every),
        "solver": ("--solver", solver),
        "granularity": ("--groups", groups),
        "nested": ("--nested", nested),
        "score_before": ("--score-before", score_before),
        "straight": ("--straight", straight),
        "phases": ("--phases", phases),
        "frozen": ("--frozen", frozen),
    }
    of_rounding = {
        "estimator": ("--estimator", estimator),
        "ranges": ("--ranges", ranges),
        "symmetric": ("--symmetric", symmetric),
        "start": ("--qat-start", qat_start),
    }
    if bcq is None:
        _refuse(of_codes, "says how binary codes are trained: give a --bcq")
    if qat == "none":
        _refuse(of_rounding, "says how integers are trained towards: give a --qat")
    if ranges != "ema":
        _refuse({"": ("--ema-decay", ema_decay)}, "is of --ranges ema")
    decay = {} if ema_decay is None else {"decay": ema_decay}
    own: dict[str, Any] = {
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": schedule,
        "label_smoothing": label_smoothing,
    }
    settings = replace(
        OF_TASK.get(task, DEFAULT),
        qat=qat,
        plan=None if bcq is None else find_plan(bcq, {"score_before": True} | _given(of_codes)),
        distill=distill,
        options=QatOptions(**_given(of_rounding), range_options=decay),
        max_steps=max_steps,
        accumulate=accumulate,
        warmup=warmup,
        weight_decay=weight_decay,
        eval_steps=eval_steps,
        save_steps=save_steps,
        evaluate_during_training=evaluate_during_training,
        bf16=bf16,
        seed=seed,
        **{name: value for name, value in own.items() if value is not None},
    )
    check_begin(output, settings, resume, overwrite)
    # From here on, so that a second run is told before it loads anything.
    with claiming(output):
        if task == "translation" and data is None:
            data = default_data(quiet)
        start: str | Architecture
        tokenizer: PreTrainedTokenizerBase | None
        if model is None:
            start = Architecture(**_given(sizes | {"dropout": ("--dropout", dropout)}))
            words = VOCABULARY if vocabulary is None else vocabulary
            tokenizer = new_tokenizer(data, pairs, words, most)
        else:
            start, tokenizer = model, load_tokenizer(model, lower_case)
        if tokenizer is None:
            raise UsageError(f"{model} has no tokenizer")
        material = Material(
            start,
            tokenizer,
            data,
            max_length=most,
            attention_dropout=attention_dropout,
            dropout=dropout,
            pairs=pairs,
            **_given(by_task["glue"]),
            **_given(by_task["squad"]),
        )
        outcome = run(
            task,
            material,
            output,
            settings,
            resume,
            overwrite,
            progress=not (quiet or as_json),
            baseline=baseline,
            keep_checkpoints=keep_checkpoints,
        )
    if as_json:
        print(json.dumps(outcome.to_dict()))
    elif not quiet and outcome.folders:
        console = Screen()
        for note in outcome.notes:
            console.print(note, soft_wrap=True)
        console.print(outcome_table(outcome))
        for line in sample_lines(outcome):
            console.print(line, soft_wrap=True, markup=False)
        for folder in outcome.folders:
            console.print(f"written to {folder}", soft_wrap=True)


def default_data(quiet: bool) -> str:
    """The pairs of the hub that are learned from if none are named. Raises UsageError where the hub
    may not be asked."""
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


def _given(options: Options) -> dict[str, Any]:
    """What was typed, by the names that Python has for it."""
    return {name: value for name, (_, value) in options.items() if value is not None}


def _refuse(options: Options, why: str) -> None:
    """Raises UsageError for the first that was typed."""
    for flag, value in options.values():
        if value is not None:
            raise UsageError(f"{flag} {why}")


def outcome_table(outcome: "Outcome") -> Table:
    """One row per metric, one column per model."""
    table = Table(
        title=f"after {outcome.steps:,} steps in {outcome.seconds:,.0f} s", box=box.SIMPLE
    )
    table.add_column("")
    for name in outcome.measurements:
        table.add_column(name, justify="right")
    for found, prefix in ((outcome.measurements, ""), (outcome.test, "test ")):
        for name in dict.fromkeys(n for m in found.values() for n in m.metrics):
            cells = [m.metrics.get(name) for m in found.values()]
            table.add_row(prefix + name, *("–" if c is None else f"{c.value:.4f}" for c in cells))
    if outcome.losses:
        metric = next(iter(outcome.losses.values())).metric
        losses = [str(outcome.losses.get(name, "")) for name in outcome.measurements]
        table.add_row(f"{'test ' if outcome.test else ''}{metric}, loss", *losses)
    return table


def sample_lines(outcome: "Outcome") -> Iterator[str]:
    """Source, reference and output of a few items, where the task has such."""
    *_, last = outcome.measurements.values()
    for sample in last.samples:
        if sample.reference is not None:
            yield f"source     {sample.source}"
            yield f"reference  {sample.reference}"
            yield f"output     {sample.output}"
            yield ""
