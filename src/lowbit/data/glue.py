"""GLUE's nine tasks, in GLUE's own files (Wang et al. 2019, gluebenchmark.com).

    MRPC/train.tsv, dev.tsv, test.tsv      tab-separated, never quoted, columns named in line 1

Only CoLA's train and dev have no line of names; MNLI has two dev and two test sets; test sets have
no labels. Some of QQP's rows were cut at a line end when GLUE was made.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.data import hf_datasets as hub
from lowbit.data.glue_tasks import GlueTask, find_task
from lowbit.data.lines import read_lines
from lowbit.errors import InputError, UsageError

HUB = "nyu-mll/glue"
HIGHEST_SCORE = 5.0


@dataclass(frozen=True)
class GlueData:
    """One file's rows. `sentences` holds one or two texts a row; `labels` are classes, or scores
    for STS-B, or None where the file has none. `cut_rows`: how many were left out as cut."""

    task: GlueTask
    part: str
    source: str
    sentences: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...] | tuple[float, ...] | None
    cut_rows: int = 0


def read(name: str, split: str, data: str | Path | None = None) -> tuple[GlueData, ...]:
    """A split of the task: one file, or both of MNLI's dev or test.

    split: train, dev or test, or one of MNLI's parts, such as dev_mismatched.
    data: the task's folder, one that holds it under GLUE's name for it, or a file that is read
    whatever it is called. None asks the hub.

    Raises UsageError for an unknown task or split, InputError for everything unusable.
    """
    task = find_task(name)
    if split not in task.splits:
        raise UsageError(f"GLUE {name} has no split {split!r}; it has {', '.join(task.splits)}")
    parts = task.splits[split]
    if data is None:
        return tuple(_from_hub(task, part) for part in parts)
    return tuple(_from_file(task, part, file) for part, file in _files(task, parts, Path(data)))


def _files(task: GlueTask, parts: tuple[str, ...], data: Path) -> Iterator[tuple[str, Path]]:
    if data.is_file():
        if len(parts) > 1:
            raise UsageError(
                f"{data} is one file, and GLUE {task.name} has {len(parts)}: give a folder, or the"
                f" split {' or '.join(parts)}"
            )
        yield parts[0], data
        return
    if not data.is_dir():
        raise InputError(f"there is no folder {data}")
    for part in parts:
        candidates = [data / task.folder / f"{part}.tsv", data / f"{part}.tsv"]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            hint = "; --split dev reads the dev set" if part.startswith("test") else ""
            raise InputError(f"{data} holds neither {task.folder}/{part}.tsv nor {part}.tsv{hint}")
        yield part, found


def _from_file(task: GlueTask, part: str, file: Path) -> GlueData:
    lines = read_lines(file)
    is_test = part.startswith("test")
    headless = task.headless and not is_test
    columns = list(task.headless) if headless else lines[0].split("\t")
    labelled = task.label in columns or not is_test
    wanted = [*task.texts, *([task.label] if labelled else [])]
    for column in wanted:
        if column not in columns:
            raise InputError(
                f"{file} has no column {column!r}; line 1 names {len(columns)}: "
                + ", ".join(repr(name) for name in columns[:12])
            )
    places = [columns.index(column) for column in wanted]
    texts: list[tuple[str, ...]] = []
    labels: list[int | float] = []
    cut = 0
    first = 0 if headless else 1
    for number, line in enumerate(lines[first:], first + 1):
        cells = line.split("\t")
        if len(cells) < len(columns) and task.drops_cut_rows:
            cut += 1
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{file}, line {number}: the number of columns is {len(cells)}, not {len(columns)}"
                f" as in GLUE's {task.folder}"
            )
        row = [cells[place] for place in places]
        texts.append(tuple(row[: len(task.texts)]))
        if labelled:
            labels.append(_label(task, row[-1], f"{file}, line {number}"))
    if not texts:
        raise InputError(f"{file} has no rows")
    return GlueData(task, part, str(file), tuple(texts), tuple(labels) if labelled else None, cut)


def _label(task: GlueTask, written: str, where: str) -> int | float:
    if task.is_regression:
        try:
            score = float(written)
        except ValueError:
            score = math.nan
        if not 0 <= score <= HIGHEST_SCORE:
            raise InputError(f"{where}: the score {written!r} is not within 0 … {HIGHEST_SCORE}")
        return score
    names = task.written or task.labels
    if written not in names:
        raise InputError(
            f"{where}: the label {written!r} is not one of the {len(names)} of GLUE {task.name}:"
            f" {', '.join(names)}"
        )
    return names.index(written)


def _from_hub(task: GlueTask, part: str) -> GlueData:
    rows: list[Mapping[str, Any]] = list(
        hub.load(HUB, task.name, part.replace("dev", "validation", 1))
    )
    columns = task.hub_texts or task.texts
    absent = [column for column in (*columns, "label") if column not in rows[0]]
    if absent:
        raise InputError(f"{HUB}:{task.name} of the hub has no column {absent[0]!r}")
    # The hub writes −1 for the labels that test sets lack.
    labelled = not part.startswith("test")
    return GlueData(
        task,
        part,
        f"{HUB}:{task.name} {part}",
        tuple(tuple(row[column] for column in columns) for row in rows),
        tuple(row["label"] for row in rows) if labelled else None,
    )
