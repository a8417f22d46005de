"""Quantize a checkpoint into a folder with calibration data: the float model is in memory."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.calibration import texts
from lowbit.checkpoint.atomic_write import check_output, staged, writing
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.checkpoint.read import find, float_config
from lowbit.checkpoint.shards import MAX_SHARD_BYTES
from lowbit.checkpoint.work_folder import claimed
from lowbit.conversion.apply import Result
from lowbit.conversion.default_recipe import choose, named
from lowbit.conversion.footprint import footprint
from lowbit.conversion.model_card import write_card
from lowbit.conversion.numbers import check_numbers
from lowbit.conversion.recipe import Recipe
from lowbit.errors import InputError
from lowbit.progress import without_transformers_bars
from lowbit.qat.prepare import QatOptions
from lowbit.quantization.in_memory import quantize_by
from lowbit.solvers import Solver, load_solver


def quantize_calibrated(
    model: str,
    recipe: str | Path | Recipe | Mapping[str, Any] | None,
    output: str | Path,
    data: str | Path,
    solver: str | Mapping[str, Any] | Solver = "nearest",
    samples: int = 128,
    length: int | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
    options: QatOptions | None = None,
) -> Result:
    """Quantize a checkpoint into a folder, with calibration on a text.

    The whole float model is in memory. A solver keeps finished layers in a folder beside `output`.
    After an interruption, the same call continues from that folder. A run that succeeds removes it.

    Args:
        model: A folder or a hub id.
        recipe: The same as in `lowbit.quantize`.
        output: The folder to write.
        data: A text file, a folder of .txt files, or a data set of the hub.
        solver: The same as in `lowbit.quantize`.
        samples: The number of windows of the text to read.
        length: Tokens per window. None: the model's maximum, at most 512.
        overwrite: Replace an existing model folder.
        max_shard_bytes: The largest file to write, in bytes.
        progress: Show a progress bar if quantization takes more than two seconds.
        options: How to find the ranges of static activations. None: the least squared error.

    Returns:
        The plan, sizes in bytes before and after, the error of each weight, and notes.

    Raises:
        UsageError: if the recipe or the solver is unknown, neither of them needs data, `output`
            exists and `overwrite` is false, or another run writes `output`.
        InputError: if the checkpoint or the text cannot be read, the checkpoint has no tokenizer,
            a weight is not finite, or `output` cannot be written.

    On error, `output` is left unchanged.
    """
    given, solver = named(recipe), load_solver(solver)
    source, output = find(model), Path(output)
    float_config(source)
    check_output(output, overwrite, source)
    # Claim before solving: else a second run would fail only after hours of work.
    with claimed(output):
        tokenizer = load_tokenizer(source)
        if tokenizer is None:
            raise InputError(f"{source} has no tokenizer to read {data} with")
        loaded = load_model(source)
        check_numbers(loaded)  # what stays float is written as it is
        chosen, why = choose(loaded, given)
        material = texts.read(data, loaded, tokenizer, samples, length)
        before = footprint(loaded, source)
        work = output.with_name(f".{output.name}.solving")
        result = quantize_by(loaded, chosen, solver, progress, material.batches, options, work)
        with staged(output) as folder, without_transformers_bars():
            with writing(output):
                loaded.save_pretrained(folder, max_shard_size=max_shard_bytes)
            copy_companions(source, folder)
            config = loaded.config
            quantized = config.quantization_config
            write_card(folder, source, config.architectures[0], quantized, result.plan)
            after = footprint(loaded, folder)
        shutil.rmtree(work, ignore_errors=True)
    return replace(result, before=before, after=after, notes=why + material.notes + result.notes)
