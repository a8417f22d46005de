"""Compare recipes on one float model: quantize, measure, and save finished models.

    FOLDER/
        float.json       the record of the float model
        int4/            the quantized model, as `lowbit quantize` writes it
        int4.json        its record, and a fingerprint of its inputs

An interrupted run continues with the first model without a record. If a fingerprint differs
(another model, data, plan or version), the record is created again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lowbit.checkpoint.atomic_write import staged_file
from lowbit.checkpoint.documents import read_json
from lowbit.checkpoint.read import find, weight_files
from lowbit.checkpoint.work_folder import claimed, tidy
from lowbit.conversion.plan import check_static, make_plan
from lowbit.conversion.recipe import Recipe, load_recipe, names_a_folder
from lowbit.errors import InputError, LowbitError, UsageError
from lowbit.evaluation.evaluate import EvaluationPlan, examine, load_subject
from lowbit.evaluation.study import ModelRecord, Study
from lowbit.evaluation.task import Subject
from lowbit.inspect.environment import describe
from lowbit.progress import progress_bar
from lowbit.quantization.streaming import quantize_checkpoint
from lowbit.visible import visible

FLOAT = "float"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")


def compare(
    model: str | Path,
    recipes: Sequence[str | Path | Recipe],
    plan: EvaluationPlan | Callable[[Subject], EvaluationPlan],
    folder: str | Path,
    commands: Sequence[str] = (),
    progress: bool = True,
) -> Study:
    """Quantize `model` with each recipe into `folder`, and compare all with the float model.

    plan: what to measure, or a function from the loaded float model to a plan.

    Raises UsageError if recipes are unknown or have the same name, or if a recipe or the plan does
    not fit the model; InputError if a model, data or folder cannot be read or written.
    """
    chosen = [load_recipe(recipe) for recipe in recipes]
    source, folder = find(model), Path(folder)
    reference_name = source.resolve().name
    names = [reference_name, FLOAT, *(recipe.name for recipe in chosen)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two of the models to compare are called {twice[0]!r}")
    for name in names:
        if not names_a_folder(name):
            raise UsageError(f"the recipe's name {name!r} cannot name a folder")
    _make(folder)
    # Claim before measuring: else a second run would fail only after hours of work.
    with claimed(folder):
        tidy(folder)
        reference = load_subject(source)
        plan = plan if isinstance(plan, EvaluationPlan) else plan(reference)
        plan.check(reference)
        for recipe in chosen:
            check_static(make_plan(reference.model, recipe))
        with progress_bar(1 + len(chosen), "comparing", "model", progress) as bar:
            bar.set_postfix_str(visible(reference_name))
            first = _kept(
                folder / f"{FLOAT}.json",
                _fingerprint(source, reference, plan, None),
                plan,
                lambda: examine(reference, source, plan, progress=progress),
            )
            bar.update()
            records = [first]
            for recipe in chosen:
                bar.set_postfix_str(visible(recipe.name))
                mark = _fingerprint(source, reference, plan, recipe)
                made = partial(
                    _quantized,
                    source,
                    recipe,
                    folder / recipe.name,
                    plan,
                    reference,
                    first,
                    progress,
                )
                records.append(_kept(folder / f"{recipe.name}.json", mark, plan, made))
                bar.update()
        return Study(tuple(records), describe(), plan.seed, tuple(commands))


def _quantized(
    source: Path,
    recipe: Recipe,
    out: Path,
    plan: EvaluationPlan,
    reference: Subject,
    first: ModelRecord,
    progress: bool,
) -> ModelRecord:
    """Write the quantized model of a recipe, and measure it."""
    quantize_checkpoint(str(source), recipe, out, overwrite=True, progress=progress)
    subject = replace(load_subject(out, recipe.name), tokenizer=reference.tokenizer)
    return examine(subject, out, plan, reference, first, progress)


def _kept(
    file: Path, mark: str, plan: EvaluationPlan, make: Callable[[], ModelRecord]
) -> ModelRecord:
    """The record in `file` if it has this fingerprint; else a new one, written to `file`."""
    known = _recorded(file, mark)
    if known is None:
        known = make()
        told = {"fingerprint": mark, **Study((known,), describe(), plan.seed).to_dict()}
        with staged_file(file) as unfinished:
            unfinished.write_text(json.dumps(told), encoding="utf-8")
    return known


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created: {error.strerror}") from error


def _recorded(file: Path, mark: str) -> ModelRecord | None:
    """The record of a model, if it is complete and has the same fingerprint; else None."""
    try:
        stored = read_json(file)
        same = stored.pop("fingerprint", None) == mark
        return Study.from_dict(stored).models[0] if same else None
    except (LowbitError, AttributeError, TypeError, IndexError):
        return None


def _fingerprint(
    source: Path, reference: Subject, plan: EvaluationPlan, recipe: Recipe | None
) -> str:
    """A fingerprint of the checkpoint, the tokenizer and the data (size and time of files), the
    plan, the recipe and the versions."""
    names = {*CONFIGS, *getattr(reference.tokenizer, "vocab_files_names", {}).values()}
    files = weight_files(source) + sorted(
        file for file in map(source.joinpath, names) if file.exists()
    )
    for task in plan.tasks:
        for data in (getattr(task, name, None) for name in ("data", "target")):
            if data is not None and Path(data).exists():
                # Rewriting a file does not change the time of its folder.
                files += [Path(data), *sorted(Path(data).rglob("*"))]
    made_from: list[Any] = [
        describe(),
        repr(plan),
        None if recipe is None else recipe.to_dict(),
        [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files],
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
