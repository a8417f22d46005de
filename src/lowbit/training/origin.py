"""What a training starts from: a float model, and what an earlier training learned beside it."""

from dataclasses import dataclass, replace
from pathlib import Path

from lowbit.checkpoint.foreign import METHOD
from lowbit.checkpoint.read import find, read_config
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.qat.learned import LEARNED, Learned, same_recipe
from lowbit.qat.prepare import QatOptions
from lowbit.training.lesson import Material


@dataclass(frozen=True)
class Origin:
    """The material, whose model is float; what was learned with it, if that can be used; and what
    is to be said of both."""

    material: Material
    learned: Learned | None = None
    notes: tuple[str, ...] = ()


def origin(material: Material, recipe: str | Recipe | None, options: QatOptions) -> Origin:
    """An integer model that a training wrote stands for the float model beside it. What was learned
    is used where `recipe` and `options` are those that it was learned with.

    Raises InputError for a model that is not there, or a file of what was learned that is broken.
    """
    if not isinstance(material.model, str):
        return Origin(material)
    folder = find(material.model)
    notes: list[str] = []
    beside = _float_beside(folder)
    if beside is not None:
        notes.append(f"{folder} is the integer model of {beside}; training continues from it")
        material, folder = replace(material, model=str(beside)), beside
    file = folder / LEARNED
    if recipe is None or not file.is_file():
        return Origin(material, None, tuple(notes))
    learned = Learned.read(file)
    alike = same_recipe(learned.recipe, load_recipe(recipe))
    if alike and replace(learned.options, start=0) == replace(options, start=0):
        notes.append(f"ranges and scales go on from {file}")
        if options.start:
            notes.append(f"no pass stays in float, as {file} has passes with rounding already")
        return Origin(material, learned, tuple(notes))
    notes.append(f"{file} was learned with another recipe or other options, so it is not used")
    return Origin(material, None, tuple(notes))


def _float_beside(folder: Path) -> Path | None:
    """The float model that the training of an integer model wrote beside it."""
    stored = getattr(read_config(folder), "quantization_config", None)
    if stored is None or dict(stored).get("quant_method") != METHOD:
        return None
    beside = folder.resolve().parent / "float"
    if not (beside / LEARNED).is_file():
        return None
    learned = Learned.read(beside / LEARNED)
    return beside if same_recipe(learned.recipe, dict(stored)["recipe"]) else None
