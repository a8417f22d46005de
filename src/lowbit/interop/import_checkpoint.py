"""Import: convert a checkpoint that another program quantized to a lowbit folder, code by code.

Only one tensor at a time is in memory. Weights that lowbit can represent are not rounded again.
The others are quantized again if the caller gives a recipe.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from lowbit.checkpoint.atomic_write import check_output, staged
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import find, skeleton
from lowbit.checkpoint.shards import MAX_SHARD_BYTES
from lowbit.conversion.apply import Result
from lowbit.conversion.default_recipe import named
from lowbit.conversion.footprint import footprint
from lowbit.conversion.model_card import write_card
from lowbit.conversion.module_weights import WeightName
from lowbit.conversion.plan import Plan, Quantize, check_static, make_plan
from lowbit.conversion.quantized_folder import QuantizedFolder
from lowbit.conversion.recipe import KEEP, Recipe, Rule
from lowbit.conversion.streamed_load import dtype_of, names_in_model, read_all
from lowbit.errors import InputError
from lowbit.formats import AffineLayout, ExpertsLayout
from lowbit.interop.door import ForeignWeight, Reader, Source
from lowbit.interop.doors import DOORS
from lowbit.interop.foreign_experts import together
from lowbit.schemes import Absmax, KQuant, Scheme, ZeroPoint


def import_checkpoint(
    path: str | Path,
    output: str | Path,
    requantize: str | Path | Recipe | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
) -> Result:
    """Convert a checkpoint that another program quantized to a lowbit folder.

    Codes, scales and zero points do not change. Peak memory is one tensor and one shard, in
    addition to the memory of torch and transformers. docs/interop.md lists the formats.

    Args:
        path: A file or folder in a format that lowbit imports.
        output: The folder to write.
        requantize: A recipe for weights with codes that lowbit cannot represent (NF4, for example).
            They are decoded and quantized again. None: such weights are an error.
        overwrite: Replace an existing model folder.
        max_shard_bytes: The largest file to write, in bytes.
        progress: Show a progress bar if the import takes more than two seconds.

    Returns:
        The plan, sizes in bytes before and after, the error of each requantized weight, the tensors
        that the model does not use, and notes.

    Raises:
        UsageError: if the recipe is unknown or needs data, or if `output` exists and `overwrite` is
            false.
        InputError: if the checkpoint cannot be read, has an unknown format, or has weights that
            need `requantize`, or if `output` cannot be written.

    On error, `output` is left unchanged.
    """
    recipe = None if requantize is None else named(requantize)
    path, output = Path(path), Path(output)
    name, reader = _reader(path)
    check_output(output, overwrite, path)
    with reader.open(path, recipe is not None) as source:
        config = source.checkpoint.config
        dtype = dtype_of(config, source.floats)
        config.dtype = dtype
        model = skeleton(source.checkpoint, dtype)
        config.architectures = [type(model).__name__]
        with reading(path):
            source = together(model, source, recipe is not None)
            plan = _plan(model, source, name, recipe)
        before = footprint(model)
        with staged(output) as folder:
            sink = QuantizedFolder(folder, model, plan, max_shard_bytes)
            tensors = dict(source.floats) | {n: w.file for n, w in source.weights.items()}
            with reading(path):
                unused = read_all(model, tensors, sink, progress, "importing")
            after = sink.finish(config, dtype)
            source.companions(folder)
            notes = _notes(source, plan)
            write_card(
                folder, path, config.architectures[0], config.quantization_config, plan, notes
            )
    return Result(plan, before, after, sink.errors, unused, notes)


def _reader(path: Path) -> tuple[str, Reader]:
    """The format of a file or folder, and its reader. Raises InputError if no reader knows it."""
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    for name, door in DOORS.items():
        if door.reader is not None and door.reader.recognizes(path):
            return name, door.reader
    find(path)  # raises for a file
    readable = ", ".join(name for name, door in DOORS.items() if door.reader is not None)
    raise InputError(f"{path} has no format that lowbit imports: {readable}")


def _plan(model: PreTrainedModel, source: Source, name: str, recipe: Recipe | None) -> Plan:
    """The import plan. Raises InputError if the model has no place for a quantized weight."""
    weights = _by_place(model, source)
    if recipe is None:
        chosen = Recipe(_rules(model, weights), name, strict=False)
    else:
        own = (Rule(place, _scheme(w.layout), w.activations) for place, w in weights.items())
        chosen = Recipe((*own, *recipe.rules), f"{name}, {recipe.name}", strict=False)
    plan = make_plan(model, chosen)
    check_static(plan)
    decided = {d.name: d for d in plan.decisions}
    for place in weights:
        decision = decided.get(place)
        if not isinstance(decision, Quantize):
            told = f"it is kept: {decision.reason}" if decision else "it is not a matrix"
            raise InputError(f"{place} is quantized, but not in a {type(model).__name__}: {told}")
    return plan


def _by_place(model: PreTrainedModel, source: Source) -> dict[str, ForeignWeight]:
    """The quantized weights of the model, by place. Raises InputError if transformers would convert
    one, for example join it with others."""
    found = {}
    there = model.state_dict()
    every = (*source.floats, *source.weights)
    for stored, (name, converter, _) in names_in_model(model, every).items():
        if stored not in source.weights or name not in there:
            continue
        if converter is not None:
            raise InputError(
                f"{stored} is a part of {name} in this transformers, and lowbit does not join"
                " quantized tensors: import the model with a transformers that keeps it apart, or"
                " quantize the float model"
            )
        found[WeightName.parse(name).place] = source.weights[stored]
    if not found and not source.unheld:
        raise InputError(f"no quantized weight of the checkpoint is one of {type(model).__name__}")
    return found


def _rules(model: PreTrainedModel, weights: Mapping[str, ForeignWeight]) -> tuple[Rule, ...]:
    """Rules that describe the weights: one for most layers, and one for each layer that differs."""
    said: dict[str, tuple[Scheme | None, str]] = {
        place: (_scheme(w.layout), w.activations) for place, w in weights.items()
    }
    ((common, _),) = Counter(said.values()).most_common(1)
    most = Rule("@linear", *common)
    trial = make_plan(model, Recipe((most,), strict=False))
    reached = {d.name for d in trial.owners}
    unlike = {place: said.get(place, (KEEP, "float")) for place in reached}
    others = {place: found for place, found in said.items() if place not in reached}
    others |= {place: found for place, found in unlike.items() if found != common}
    different = (Rule(place, *found) for place, found in others.items())
    return (*different, most)


def _scheme(layout: AffineLayout | ExpertsLayout) -> Scheme:
    """The scheme with these bits and groups. It only describes the weight to readers of the recipe;
    the layout is exact."""
    if isinstance(layout, ExpertsLayout):
        layout = cast(AffineLayout, layout.each)
    if layout.two_level is not None:
        return KQuant(layout.bits)
    dtype = str(layout.scale_dtype).removeprefix("torch.")
    if layout.zero_point or layout.offset:
        zero = "float" if layout.offset else "integer"
        return ZeroPoint(layout.bits, layout.granularity, dtype, zero)
    return Absmax(layout.bits, layout.granularity, scale_dtype=dtype)


def _notes(source: Source, plan: Plan) -> tuple[str, ...]:
    taken = f"The codes of {len(source.weights):,} weights were kept from {source.told}."
    if not source.unheld:
        return (taken,)
    kinds = ", ".join(sorted(set(source.unheld.values())))
    again = (
        f"{len(source.unheld):,} weights ({kinds}) were decoded, and quantized again by"
        f" {plan.recipe.name}."
    )
    return (taken, again) if source.weights else (again,)
