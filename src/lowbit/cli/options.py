"""Options that several verbs share: what to score, what to time."""

import shlex
import sys
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import typer
from transformers import PreTrainedModel

from lowbit.errors import UsageError
from lowbit.evaluation.evaluate import EvaluationPlan
from lowbit.evaluation.latency import Shape, default_shapes
from lowbit.evaluation.task import Task
from lowbit.evaluation.tasks import TASKS, make_task, options_of


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
    text: Annotated[
        str | None, typer.Option(help="A sentence to predict, or a prompt, instead of data.")
    ] = None
    subset: Annotated[
        str | None, typer.Option("--name", "--subset", help="The GLUE task: cola, mrpc, …")
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="Which part of the data, as its files are named: dev, train, test."),
    ] = None
    target: Annotated[
        str | None, typer.Option(help="The lines to be translated into; --data has the source.")
    ] = None
    prefix: Annotated[
        str | None, typer.Option(help="Put before each source, as T5 is told what to do.")
    ] = None
    context: Annotated[int | None, typer.Option(help="Tokens in a window of the text.")] = None
    stride: Annotated[
        int | None,
        typer.Option(
            help="Of a text: tokens from one window to the next. Of SQuAD: tokens that two share."
        ),
    ] = None
    max_length: Annotated[int | None, typer.Option(help="Tokens of one item, at most.")] = None
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens of a translation.")] = None
    new_tokens: Annotated[int | None, typer.Option(help="Tokens of a sample.")] = None
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Of a sample: tokens to choose from; 1 is greedy.")
    ] = None
    beams: Annotated[int | None, typer.Option(help="1 is greedy.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Items at a time.")] = None
    seed: Annotated[int, typer.Option(help="For what is sampled.")] = 0
    shapes: Annotated[
        str | None,
        typer.Option(
            help="What to time: batch x length, + new tokens: 1x128,8x128,1x32+32; or none."
        ),
    ] = None

    def plan(self, model: PreTrainedModel | None = None, pictures: bool = False) -> EvaluationPlan:
        """Raises UsageError for unknown tasks, options that a task does not have, and shapes that
        are none. By default what is timed depends on the model; without one nothing is."""
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

    def _shapes(self, model: PreTrainedModel | None) -> tuple[Shape, ...]:
        if self.shapes is None:
            return () if model is None else default_shapes(model)
        if self.shapes == "none":
            return ()
        return tuple(Shape.parse(text) for text in self.shapes.split(","))


def this_command() -> str:
    """The command line as it was typed, for the record."""
    return shlex.join(["lowbit", *sys.argv[1:]])
