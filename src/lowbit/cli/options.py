"""Options that several verbs share: how to write and print, what to score, what to time."""

import shlex
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from lowbit.cli.choices import TASKS
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lowbit.evaluation.evaluate import EvaluationPlan
    from lowbit.evaluation.latency import Shape
    from lowbit.evaluation.task import Task


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")]
ShardSize = Annotated[
    int, typer.Option(min=1, help="Megabytes (10⁶ bytes) of one file. Less needs less memory.")
]


@dataclass(frozen=True)
class Measured:
    """What a verb is asked to measure. Each field is an option of the command line."""

    PANEL: ClassVar[str] = "What to measure"

    task: Annotated[str | None, typer.Option(help=f"What to score: {', '.join(TASKS)}.")] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "--data-dir", help="A file or folder in the task's layout, or a datasets id."
        ),
    ] = None
    text: Annotated[str | None, typer.Option(help="A sentence or a prompt, instead of --data.")] = (
        None
    )
    subset: Annotated[
        str | None, typer.Option("--name", "--subset", help="The GLUE task: cola, mrpc, …")
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data: dev, train, test."),
    ] = None
    target: Annotated[
        str | None, typer.Option(help="The file with translations, if --data has only sources.")
    ] = None
    prefix: Annotated[str | None, typer.Option(help="Text before each source; T5 needs one.")] = (
        None
    )
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window of the text.", show_default="the model's")
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            help="Text: tokens from one window to the next. SQuAD: tokens that two windows share."
        ),
    ] = None
    max_length: Annotated[int | None, typer.Option(help="Most tokens of an item.")] = None
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of a translation.")] = None
    new_tokens: Annotated[int | None, typer.Option(help="Tokens to generate.")] = None
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Generate from this many likeliest tokens; 1 is greedy."),
    ] = None
    beams: Annotated[int | None, typer.Option(help="Beams of a translation; 1 is greedy.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Items at a time.")] = None
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0
    shapes: Annotated[
        str | None,
        typer.Option(
            help="What to time: BATCHxLENGTH, or BATCHxLENGTH+NEW tokens, with commas; or none."
        ),
    ] = None

    def plan(
        self, model: "PreTrainedModel | None" = None, pictures: bool = False
    ) -> "EvaluationPlan":
        """Raises UsageError for unknown tasks and shapes, and options that a task does not have.
        If no shapes were typed, they are the usual ones of `model`, or none without a model."""
        from lowbit.evaluation.evaluate import EvaluationPlan
        from lowbit.evaluation.tasks import make_task, options_of

        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("task", "seed", "shapes")
        }
        if self.task is None and (given := [k for k, v in options.items() if v is not None]):
            raise UsageError(f"--{given[0]} says how to score: give a --task")
        tasks: tuple[Task, ...] = ()
        if self.task is not None:
            seed = {"seed": self.seed} if "seed" in options_of(self.task) else {}
            tasks = (make_task(self.task, **options, **seed),)
        return EvaluationPlan(tasks, self._shapes(model), pictures, seed=self.seed)

    def _shapes(self, model: "PreTrainedModel | None") -> "tuple[Shape, ...]":
        from lowbit.evaluation.latency import Shape, default_shapes

        if self.shapes is None:
            return () if model is None else default_shapes(model)
        if self.shapes == "none":
            return ()
        return tuple(Shape.parse(text) for text in self.shapes.split(","))


def this_command() -> str:
    """The command line as it was typed, for the record."""
    return shlex.join(["lowbit", *sys.argv[1:]])
