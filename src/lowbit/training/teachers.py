"""What can be taught: the name of a task is that of the module here whose `teach` makes a lesson,
with dashes.

Named, not imported: `lowbit train --help` need not wait for Trainer.
"""

from importlib import import_module

from lowbit.errors import check_choice
from lowbit.training.lesson import Teacher

TEACHERS = ("glue", "squad", "token-classification", "language", "translation")


def find_teacher(task: str) -> Teacher:
    """Raises UsageError."""
    check_choice("task", task, TEACHERS)
    teacher: Teacher = import_module(f"lowbit.training.{task.replace('-', '_')}").teach
    return teacher
