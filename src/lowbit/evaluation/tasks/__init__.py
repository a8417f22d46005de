"""The tasks by name, and how options become one."""

from dataclasses import fields
from typing import Any

from lowbit.errors import UsageError
from lowbit.evaluation.task import Task
from lowbit.evaluation.tasks.generate import Generate
from lowbit.evaluation.tasks.perplexity import Perplexity

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Perplexity, Generate)}


def make_task(name: str, **options: Any) -> Task:
    """The task of that name; options that are None were not given.

    Raises UsageError for a name that is none, or an option that the task does not have.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    kind = TASKS[name]
    given = {key: value for key, value in options.items() if value is not None}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if foreign := sorted(given.keys() - known):
        raise UsageError(
            f"task {name} has no option {foreign[0]!r}; it has {', '.join(sorted(known))}"
        )
    return kind(**given)
