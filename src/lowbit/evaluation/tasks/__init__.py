"""The tasks by name, and their construction from options."""

from dataclasses import MISSING, Field, fields
from typing import Any

from lowbit.errors import UsageError, check_choice
from lowbit.evaluation.task import Task
from lowbit.evaluation.tasks.generate import Generate
from lowbit.evaluation.tasks.glue import Glue
from lowbit.evaluation.tasks.perplexity import Perplexity
from lowbit.evaluation.tasks.similarity import Similarity
from lowbit.evaluation.tasks.squad import Squad
from lowbit.evaluation.tasks.token_classification import TokenClassification
from lowbit.evaluation.tasks.translation import Translation

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for kind in (Perplexity, Generate, Glue, Squad, TokenClassification, Translation, Similarity)
}

# What the command line calls an option, if not by its name.
FLAGS = {"subset": " (--name)"}


def options_of(name: str) -> dict[str, Field[Any]]:
    """The options of a task, by name. Raises UsageError if the task is unknown."""
    check_choice("task", name, TASKS)
    return {field.name: field for field in fields(TASKS[name])}  # type: ignore[arg-type]


def make_task(name: str, **options: Any) -> Task:
    """The task with this name and these options; None means not given.

    Raises UsageError if the name or an option is unknown, or a required option is missing.
    """
    known = options_of(name)
    given = {key: value for key, value in options.items() if value is not None}
    if foreign := sorted(given.keys() - known.keys()):
        raise UsageError(
            f"task {name} has no option {foreign[0]!r}; it has {', '.join(sorted(known))}"
        )
    # `data` may be None if the hub has the data.
    optional = {key for key, field in known.items() if "None" in str(field.type)}
    needed = {key for key, field in known.items() if field.default is MISSING}
    if absent := sorted(needed - given.keys() - optional):
        raise UsageError(f"task {name} needs the option {absent[0]!r}{FLAGS.get(absent[0], '')}")
    return TASKS[name](**{**dict.fromkeys(needed & optional), **given})
