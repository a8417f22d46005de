"""What config.json says of a quantized model: `quantization_config`.

quant_method "lowbit", a format version, the producer, an explicit map module name -> layout and
activations (or the module it is tied to), and, for people, the recipe that made it.
"""

import importlib.metadata
import inspect
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.checkpoint.foreign import METHOD
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.errors import InputError, LowbitError
from lowbit.formats import VERSIONS, layout_from_dict
from lowbit.formats.error import WeightError


class LowbitConfig(QuantizationConfigMixin):
    """A quantization config: `LowbitConfig("int4")` quantizes a float checkpoint while it loads.

    config.json also has `modules` (what is stored), `hashes` of all tensors, and, for people,
    `errors` of the weights.

    Raises:
        UsageError: for an unknown recipe.
        InputError: for a format version that this lowbit cannot read, unknown keys of config.json,
            and maps that are not mappings.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe | Mapping[str, Any],
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        errors: Mapping[str, Mapping[str, float] | WeightError] | None = None,
        format_version: int = VERSIONS[0],
        producer: str | None = None,
        quant_method: str = METHOD,
        hashes: Mapping[str, Any] | None = None,
    ) -> None:
        if format_version not in VERSIONS:
            raise InputError(
                f"the quantized model needs format version {format_version!r}; this lowbit reads"
                f" {' and '.join(map(str, VERSIONS))}"
            )
        self.quant_method = quant_method
        self.producer = producer or f"lowbit {importlib.metadata.version('lowbit')}"
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        self.modules = {name: dict(entry) for name, entry in _entries("modules", modules)}
        for name, entry in self.modules.items():
            for key in ("activations", "tied_to"):
                if not isinstance(entry.get(key, ""), str):
                    raise InputError(f"{key} of {name} is {entry[key]!r}, not a text")
        self.errors = {
            name: error if isinstance(error, WeightError) else WeightError.from_dict(error)
            for name, error in _entries("errors", errors)
        }
        self.hashes = hashes

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """That of a config.json. Raises InputError also for one without a recipe, and for a key
        that a later lowbit added."""
        if "recipe" not in config_dict:
            raise InputError("quantization_config holds no recipe")
        unknown = sorted(set(config_dict) - set(inspect.signature(cls).parameters))
        if unknown:
            raise InputError(
                f"quantization_config holds {', '.join(unknown)}, which lowbit"
                f" {importlib.metadata.version('lowbit')} does not know; it was written by"
                f" {config_dict.get('producer')}: load it with that version or a later one"
            )
        return super().from_dict(config_dict, return_unused_kwargs, **kwargs)

    @property
    def format_version(self) -> int:
        """The first that can say what is stored."""
        return max((_version(entry) for entry in self.modules.values()), default=VERSIONS[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "producer": self.producer,
            "recipe": self.recipe.to_dict(),
            "modules": deepcopy(self.modules),
            "errors": {name: error.to_dict() for name, error in self.errors.items()},
        } | ({} if self.hashes is None else {"hashes": dict(self.hashes)})


def _entries(key: str, stored: Any) -> Iterable[tuple[str, Any]]:
    """The entries of one of the maps. Raises InputError if it is no mapping."""
    if not isinstance(stored or {}, Mapping):
        raise InputError(f"{key} of quantization_config is not a mapping")
    for name, entry in (stored or {}).items():
        if not isinstance(entry, Mapping | WeightError):
            raise InputError(f"{key} of quantization_config: {name} is {entry!r}, not a mapping")
        yield name, entry


def _version(entry: Mapping[str, Any]) -> int:
    """The first format version that can say what an entry of `modules` does; a module that is tied
    to another, or cannot be read, asks for none."""
    try:
        return layout_from_dict(entry).version
    except LowbitError:
        return VERSIONS[0]
