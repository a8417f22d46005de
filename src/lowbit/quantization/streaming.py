"""Quantize a checkpoint into a folder in bounded memory: read, quantize and write tensor by tensor.

transformers' own loader reads the tensors, so its renaming of old keys and its merging of tensors
apply. Each tensor goes to the writer instead of into a model. Experts of a mixture are read one by
one, even if the checkpoint stores them in one tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from lowbit.checkpoint.atomic_write import check_output, staged
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import find, float_config, open_checkpoint, open_tensors, skeleton
from lowbit.checkpoint.shards import MAX_SHARD_BYTES
from lowbit.conversion.apply import Result
from lowbit.conversion.default_recipe import choose, named
from lowbit.conversion.footprint import footprint
from lowbit.conversion.model_card import write_card
from lowbit.conversion.plan import check_static, make_plan
from lowbit.conversion.quantized_folder import QuantizedFolder
from lowbit.conversion.recipe import Recipe
from lowbit.conversion.streamed_load import float_dtype, read_all
from lowbit.errors import UsageError
from lowbit.solvers import Solver, load_solver


def quantize_checkpoint(
    model: str,
    recipe: str | Path | Recipe | Mapping[str, Any] | None,
    output: str | Path,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
    solver: str | Mapping[str, Any] | Solver = "nearest",
) -> Result:
    """Quantize a checkpoint into a folder, one tensor at a time.

    Peak memory is one float tensor, its quantized tensor and one shard, in addition to the memory
    of torch and transformers. Experts are read one at a time. The tokenizer and other small files
    are copied.

    Args:
        model: A folder or a hub id.
        recipe: The same as in `lowbit.quantize`.
        output: The folder to write.
        overwrite: Replace an existing model folder.
        max_shard_bytes: The largest file to write, in bytes.
        progress: Show a progress bar if quantization takes more than two seconds.
        solver: A solver that needs no data. Use `lowbit.quantize_calibrated` for the others and
            for static activations.

    Returns:
        The plan, sizes in bytes before and after, the error of each weight, the tensors that the
        model does not use, and notes.

    Raises:
        UsageError: if the recipe or the solver is unknown or needs data, or if `output` exists and
            `overwrite` is false.
        InputError: if the checkpoint cannot be read, is already quantized or has a weight that is
            not finite, or if `output` cannot be written.

    On error or interruption, `output` is left unchanged.
    """
    given, solver = named(recipe), load_solver(solver)
    if solver.data:
        raise UsageError(
            f"{solver.learner} learns from data: give calibration data (--calibration FILE)"
        )
    source, output = find(model), Path(output)
    config = float_config(source)
    check_output(output, overwrite, source)
    checkpoint = open_checkpoint(source, config)
    with open_tensors(checkpoint.files) as tensors:
        dtype = float_dtype(tensors)
        config.dtype = config.dtype or dtype
        float_model = skeleton(checkpoint, dtype)
        config.architectures = [type(float_model).__name__]
        chosen, why = choose(float_model, given)
        plan = make_plan(float_model, chosen)
        check_static(plan)
        before = footprint(float_model, source)
        with staged(output) as folder:
            sink = QuantizedFolder(folder, float_model, plan, max_shard_bytes, solver.solve)
            with reading(source):
                unused = read_all(float_model, tensors, sink, progress)
            after = sink.finish(config, dtype)
            if float_model.can_generate() and not (source / GENERATION_CONFIG_NAME).is_file():
                # Old checkpoints keep generation settings in config.json; new ones cannot.
                with reading(source / "config.json"):
                    GenerationConfig.from_pretrained(
                        source, "config.json", local_files_only=True, _from_model_config=True
                    ).to_json_file(folder / GENERATION_CONFIG_NAME)
            copy_companions(source, folder)
            write_card(folder, source, config.architectures[0], config.quantization_config, plan)
    return Result(plan, before, after, sink.errors, unused, why)
