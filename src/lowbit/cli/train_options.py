"""The options of `lowbit train`, grouped as its help shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from lowbit.cli.choices import ESTIMATOR, PLANS, QAT_START, RANGES
from lowbit.cli.options import AsJson, Quiet
from lowbit.cli.settings_file import from_file, shipped
from lowbit.errors import UsageError
from lowbit.training.architecture import KINDS, Architecture
from lowbit.training.usual import EVERYTHING, MAX_LENGTH, SCHEDULES, Usual

if TYPE_CHECKING:
    from lowbit.qat.prepare import QatOptions
    from lowbit.training.bcq import BcqPlan


DEFAULT, NEW = Usual(), Architecture()
VOCABULARY = 6000
CONFIGS = shipped("training/configs")


def typed(options: Any, *left_out: str) -> dict[str, Any]:
    """The options of a dataclass that were typed: those that are not None."""
    named = [field.name for field in fields(options) if field.name not in left_out]
    return {name: value for name in named if (value := getattr(options, name)) is not None}


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Raises UsageError for the first option that was typed."""
    if options:
        raise UsageError(f"--{next(iter(options)).replace('_', '-')} {why}")


@dataclass(frozen=True)
class Run:
    PANEL: ClassVar[str] = "Run"

    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
    config: Annotated[
        str | None,
        typer.Option(
            callback=from_file(CONFIGS),
            is_eager=True,
            help="A YAML file with options that are not typed. Shipped for translation:"
            f" {', '.join(CONFIGS)}.",
        ),
    ] = None
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train in float too, and show what is lost.")
    ] = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = (
        False
    )
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier training and start again.")
    ] = False
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Keep them after the training has finished.")
    ] = False
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True)
class Reading:
    """Fields of `Material`, except lower_case."""

    PANEL: ClassVar[str] = "Examples and model"

    max_length: Annotated[int, typer.Option(min=1, help="Most tokens of an example.")] = MAX_LENGTH
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Dropout probability.",
            show_default=f"the model's; {NEW.dropout} for a new model",
        ),
    ] = None
    attention_dropout: Annotated[
        float,
        typer.Option(help="Dropout of attention; 0 makes a step several times faster on a CPU."),
    ] = 0.0
    lower_case: Annotated[
        bool | None,
        typer.Option(
            "--lower-case/--keep-case",
            help="Change the tokenizer's case.",
            show_default="the tokenizer's",
        ),
    ] = None


@dataclass(frozen=True)
class Learning:
    """Fields of `Settings`; each task has its own defaults."""

    PANEL: ClassVar[str] = "Training"

    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = (
        DEFAULT.learning_rate
    )
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = DEFAULT.epochs
    max_steps: Annotated[int, typer.Option(help="Stop after this many steps; 0: no limit.")] = (
        DEFAULT.max_steps
    )
    batch_size: Annotated[int, typer.Option(help="Examples in a batch.")] = DEFAULT.batch_size
    accumulate: Annotated[int, typer.Option(help="Batches in a step.")] = DEFAULT.accumulate
    warmup: Annotated[float, typer.Option(help="Share of all steps, 0 … 1.")] = DEFAULT.warmup
    schedule: Annotated[
        str, typer.Option(help=f"Learning rate after the warm-up: {', '.join(SCHEDULES)}.")
    ] = DEFAULT.schedule
    label_smoothing: Annotated[
        float, typer.Option(help="Share of the target that is spread over all labels.")
    ] = DEFAULT.label_smoothing
    weight_decay: Annotated[float, typer.Option(help="AdamW's; norms and biases have none.")] = (
        DEFAULT.weight_decay
    )
    distill: Annotated[
        float,
        typer.Option(help="Share of the loss that is the divergence from the original MODEL."),
    ] = DEFAULT.distill
    evaluate_during_training: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate", help="Score while training; translation keeps the best."
        ),
    ] = DEFAULT.evaluate_during_training
    eval_steps: Annotated[int, typer.Option(help="Steps between scores; 0: once an epoch.")] = (
        DEFAULT.eval_steps
    )
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: once an epoch.")
    ] = DEFAULT.save_steps
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Multiply in bfloat16, if the processor can.")
    ] = DEFAULT.bf16
    seed: Annotated[
        int, typer.Option(help="Seed of new weights, dropout and the order of examples.")
    ] = DEFAULT.seed


@dataclass(frozen=True)
class Integers:
    PANEL: ClassVar[str] = "Train towards integers"

    qat: Annotated[
        str,
        typer.Option(
            help="The recipe: int8, int4, int8-dynamic, …, or none for float. --qat alone means"
            f" {EVERYTHING}."
        ),
    ] = DEFAULT.qat
    estimator: Annotated[
        str | None,
        typer.Option(help="Gradient through rounding: ste, clipped, lsq.", show_default=ESTIMATOR),
    ] = None
    ranges: Annotated[
        str | None,
        typer.Option(
            help="Ranges of static activations: mse, ema, learned, minmax, percentile.",
            show_default=RANGES,
        ),
    ] = None
    ema_decay: Annotated[
        float | None, typer.Option(help="Decay of --ranges ema.", show_default="0.9999")
    ] = None
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric", help="Static activations without a zero point.")
    ] = None
    qat_start: Annotated[
        int | None,
        typer.Option(help="Training passes that stay float.", show_default=str(QAT_START)),
    ] = None

    def options(self) -> "QatOptions":
        """Raises UsageError for an option that would do nothing."""
        from lowbit.qat.prepare import QatOptions

        if self.qat == "none":
            refuse(
                typed(self, "qat", "ema_decay"),
                "says how integers are trained towards: give a --qat",
            )
        if self.ranges != "ema":
            refuse({} if self.ema_decay is None else {"ema_decay": 0}, "is of --ranges ema")
        given = typed(self, "qat", "ema_decay", "qat_start")
        start = QAT_START if self.qat_start is None else self.qat_start
        decay = {} if self.ema_decay is None else {"decay": self.ema_decay}
        return QatOptions(**given, start=start, range_options=decay)


@dataclass(frozen=True)
class Codes:
    PANEL: ClassVar[str] = "Train towards binary codes"

    bcq: Annotated[
        str | None,
        typer.Option(help=f"The plan: {', '.join(PLANS)}, or a recipe of binary codes."),
    ] = None
    project_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between projections; 0: once an epoch.", show_default="the plan's"
        ),
    ] = None
    solver: Annotated[
        str | None, typer.Option(help="greedy or alternating.", show_default="the plan's")
    ] = None
    groups: Annotated[
        str | None,
        typer.Option(help="Weights of one scale: channel, group:64, …", show_default="the plan's"),
    ] = None
    nested: Annotated[
        bool | None, typer.Option("--nested", help="Make the first planes usable alone.")
    ] = None
    score_before: Annotated[
        bool | None,
        typer.Option(
            "--score-before/--no-score-before",
            help="Score before a projection too.",
            show_default="score-before",
        ),
    ] = None
    straight: Annotated[
        bool | None,
        typer.Option(
            "--straight/--free",
            help="Between projections compute with codes, or with floats.",
            show_default="the plan's",
        ),
    ] = None
    phases: Annotated[
        bool | None,
        typer.Option(
            "--phases/--at-once",
            help="Begin with the embedding, then the decoder, then the encoder.",
            show_default="the plan's",
        ),
    ] = None
    frozen: Annotated[
        float | None,
        typer.Option(
            help="Share of steps, at the end, in which codes stay.", show_default="the plan's"
        ),
    ] = None

    def plan(self) -> "BcqPlan | None":
        """Raises UsageError for an option that would do nothing, and an unknown plan."""
        from lowbit.training.bcq import find_plan

        given = typed(self, "bcq")
        if self.bcq is None:
            refuse(given, "says how binary codes are trained: give a --bcq")
            return None
        for own, of_plan in (("project_every", "every"), ("groups", "granularity")):
            if own in given:
                given[of_plan] = given.pop(own)
        return find_plan(self.bcq, {"score_before": True} | given)


@dataclass(frozen=True)
class Files:
    """Fields of `Pairs`."""

    PANEL: ClassVar[str] = "Pairs of sentences"

    target: Annotated[
        str | None, typer.Option(help="The file with translations, if --data has only sources.")
    ] = None
    valid: Annotated[
        str | None, typer.Option(help="Pairs to score on while training, if --data is a file.")
    ] = None
    valid_target: Annotated[str | None, typer.Option(help="The translations of --valid.")] = None
    test: Annotated[
        str | None,
        typer.Option(help="Pairs to score on at the end.", show_default="test.tsv, if there"),
    ] = None
    test_target: Annotated[str | None, typer.Option(help="The translations of --test.")] = None
    source_column: Annotated[int, typer.Option(help="Column of a TSV file, counted from 1.")] = 1
    target_column: Annotated[
        int | None,
        typer.Option(help="Column of the translations.", show_default="the other of the first two"),
    ] = None


@dataclass(frozen=True)
class Sizes:
    """A new translator: fields of `Architecture`, and the size of its vocabulary."""

    PANEL: ClassVar[str] = "New translator (if no MODEL is given)"

    vocabulary: Annotated[
        int | None, typer.Option(help="Subwords.", show_default=str(VOCABULARY))
    ] = None
    architecture: Annotated[
        str | None, typer.Option(help=f"{' or '.join(KINDS)}.", show_default=NEW.kind)
    ] = None
    layers: Annotated[
        int | None,
        typer.Option(
            help="Layers of the encoder, and of the decoder.", show_default=str(NEW.layers)
        ),
    ] = None
    width: Annotated[int | None, typer.Option(help="Hidden size.", show_default=str(NEW.width))] = (
        None
    )
    feed_forward: Annotated[
        int | None,
        typer.Option(help="Size of the feed-forward layers.", show_default=str(NEW.feed_forward)),
    ] = None
    heads: Annotated[
        int | None, typer.Option(help="Attention heads.", show_default=str(NEW.heads))
    ] = None

    def made(self, dropout: float | None) -> Architecture:
        """Raises UsageError for sizes that do not fit."""
        given = typed(self, "vocabulary", "architecture")
        if self.architecture is not None:
            given["kind"] = self.architecture
        return replace(NEW, dropout=NEW.dropout if dropout is None else dropout, **given)
