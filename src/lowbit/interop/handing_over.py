"""Out: a folder of lowbit's in the format of another program, or as floats again."""

from dataclasses import dataclass
from pathlib import Path

from lowbit.checkpoint.atomic_write import check_file, check_output, staged, staged_file
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.shards import MAX_SHARD_BYTES, ShardWriter
from lowbit.conversion.module_weights import as_stored
from lowbit.errors import UsageError, check_choice
from lowbit.interop.door import Writer
from lowbit.interop.doors import DOORS
from lowbit.interop.stored_model import open_stored
from lowbit.kernels.ops import dequantize
from lowbit.progress import tracked


@dataclass(frozen=True)
class Exported:
    """What was written: the format, the type (None: it has one), bytes, weights, and sentences
    about it."""

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
) -> Exported:
    """Write the folder `model`, which lowbit wrote, as another program reads it.

    to: "NAME" or "NAME:TYPE" of docs/interop.md. layout: of the folder that is written, if the
    format has several. The codes stay what they are. Raises UsageError for a name that is unknown
    and for a model that the format cannot hold, both before any work, InputError for a folder that
    is not lowbit's. On error, `output` is left unchanged.
    """
    name, _, kind = to.partition(":")
    writer, output, type = _writer(name, layout), Path(output), kind or None
    with open_stored(model) as stored:
        writer.check(stored, type)
        if writer.into_file:
            check_file(output)
        else:
            check_output(output, overwrite, stored.folder)
        with staged_file(output) if writer.into_file else staged(output) as new:
            notes = writer.write(stored, type, new)
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
    """Write the folder `model`, which lowbit wrote, as the float checkpoint that it decodes to.

    Each weight has the dtype that its module computes in. Peak memory is one float tensor and one
    shard. Raises as `export_checkpoint` does.
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
    """Raises UsageError for a format that is unknown or is only read, and for an unknown layout."""
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
