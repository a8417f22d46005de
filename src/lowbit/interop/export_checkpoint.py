"""Export: convert a lowbit folder to the format of another program, or to a float checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from lowbit.checkpoint.atomic_write import check_file, check_output, staged, staged_file
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import find
from lowbit.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from lowbit.conversion.module_weights import as_stored
from lowbit.errors import UsageError, check_choice
from lowbit.interop.door import Writer
from lowbit.interop.doors import DOORS
from lowbit.interop.stored_model import is_float, open_stored
from lowbit.kernels.ops import dequantize
from lowbit.progress import tracked


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        to: The name of the format, "float" for a float checkpoint.
        type: The type within the format; None if the caller gave none.
        bytes: The size of the written weight files.
        weights: The number of quantized weights; 0 for a float model.
        notes: Sentences about the export.
    """

    to: str
    type: str | None
    bytes: int
    weights: int
    notes: tuple[str, ...] = ()


def export_checkpoint(
    model: str | Path,
    to: str,
    output: str | Path,
    overwrite: bool = False,
    layout: str | None = None,
    progress: bool = True,
) -> Exported:
    """Convert a lowbit folder to the format of another program.

    The codes do not change. docs/interop.md lists the formats and their types.

    Args:
        model: A folder that lowbit wrote. For GGUF also the folder of a float model, whose tensors
            keep their dtypes.
        to: The format, "NAME" or "NAME:TYPE", such as "gguf" or "onnx".
        output: The file or folder to write, as the format requires.
        overwrite: Replace an existing file or model folder.
        layout: How to arrange the output folder, if the format has several layouts. None: the
            default.
        progress: Show a progress bar if it takes more than two seconds.

    Returns:
        The format, the type, the size in bytes, the number of weights, and notes.

    Raises:
        UsageError: if the format, type or layout is unknown, the format cannot represent the model,
            a type is given for a float model, or `output` exists and `overwrite` is false. Raised
            before anything is written.
        InputError: if `model` is not such a folder, or if `output` cannot be written.

    On error, `output` is left unchanged.
    """
    name, _, kind = to.partition(":")
    writer, output, type = _writer(name, layout), Path(output), kind or None
    if writer.write_float is not None and is_float(model):
        if type is not None:
            raise UsageError(f"{model} is a float model: quantize it, or leave out the type {type}")
        check_file(output, overwrite)
        with staged_file(output) as new:
            notes = writer.write_float(find(model), new, progress)
            return Exported(name, None, new.stat().st_size, 0, notes)
    with open_stored(model) as stored:
        writer.check(stored, type)
        if writer.into_file:
            check_file(output, overwrite)
        else:
            check_output(output, overwrite, stored.folder)
        with staged_file(output) if writer.into_file else staged(output) as new:
            notes = writer.write(stored, type, new, progress)
            files = [new] if new.is_file() else [*new.glob(writer.weights)]
            size = sum(file.stat().st_size for file in files)
    return Exported(name, type, size, len(stored.owners), notes)


def dequantize_checkpoint(
    model: str | Path,
    output: str | Path,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
) -> Exported:
    """Convert a lowbit folder to a float checkpoint with the decoded weights.

    Each weight has the compute dtype of its module. Peak memory is one float tensor and one shard.

    Args:
        model: A folder that lowbit wrote.
        output: The folder to write.
        overwrite: Replace an existing model folder.
        max_shard_bytes: The largest file to write, in bytes.
        progress: Show a progress bar if it takes more than two seconds.

    Returns:
        The size in bytes and the number of decoded weights.

    Raises:
        UsageError: if `output` exists and `overwrite` is false.
        InputError: if `model` is not a folder that lowbit wrote, or if `output` cannot be written.

    On error, `output` is left unchanged.
    """
    output = Path(output)
    with open_stored(model) as stored:
        check_output(output, overwrite, stored.folder)
        with staged(output) as folder:
            writer = ShardWriter(folder, max_shard_bytes)
            owners = stored.owners
            for weight in tracked(owners.values(), "dequantizing", "weight", progress):
                decoded = dequantize(weight.read(), weight.dtype)
                writer.add(str(weight.name), as_stored(decoded, weight.weights))
            for name, tensor in stored.floats.items():
                writer.add(name, tensor[...])
            writer.close()
            stored.config.dtype = stored.dtype
            with reading(stored.folder / "config.json"):
                stored.config.save_pretrained(folder)
            copy_companions(stored.folder, folder)
        size = writer.bytes
    return Exported("float", None, size, len(owners))


def _writer(name: str, layout: str | None) -> Writer:
    """The writer of a format. Raises UsageError if the format or layout is unknown, or if lowbit
    only imports the format."""
    door = DOORS.get(name)
    if door is None or door.writer is None:
        known = ", ".join(name for name, door in DOORS.items() if door.writer is not None)
        raise UsageError(f"there is no format {name!r} to export to: use {known}")
    if layout is None:
        return door.writer
    if not door.writer.layouts:
        raise UsageError(f"{name} has one layout: leave {layout!r} out")
    check_choice("layout", layout, door.writer.layouts)
    return door.writer.layouts[layout]
