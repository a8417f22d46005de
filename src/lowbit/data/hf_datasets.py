"""Datasets of the Hugging Face hub, through the package `datasets`: only when no file is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.errors import InputError
from lowbit.extras import needed


def may_have(name: str) -> bool:
    """Whether a path that does not exist could be the name of a dataset: `text` or `owner/text`."""
    repository, _, configuration = name.partition(":")
    return (
        repository.count("/") <= 1
        and not repository.startswith((".", "/", "~"))
        and (bool(configuration) or not Path(name).suffix)
    )


def load(name: str, configuration: str | None, split: str) -> Sequence[Mapping[str, Any]]:
    """The rows of one split. Raises InputError for whatever keeps them from here."""
    datasets = needed("datasets", "datasets", "eval")
    asked = name if configuration is None else f"{name}:{configuration}"
    try:
        rows: Sequence[Mapping[str, Any]] = datasets.load_dataset(name, configuration, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        # The network, an unknown configuration or split, a builder; the first line says what.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the hub's dataset {asked} could not be loaded: {reason}") from error
    if len(rows) == 0:
        raise InputError(f"the split {split} of the hub's dataset {asked} has no rows")
    return rows
