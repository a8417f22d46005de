"""`quantization_config`: how config.json describes a quantized model.

It holds quant_method "lowbit", a format version, the producer, and a map from module names to
layout and activations (or to the module with the same weight). The recipe is there for readers.
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
from lowbit.errors import InputError, LowbitError, UsageError
from lowbit.formats import VERSIONS, layout_from_dict
from lowbit.formats.error import WeightError


class LowbitConfig(QuantizationConfigMixin):
    """A quantization config: `LowbitConfig("int4")` quantizes a float checkpoint while it loads.

    Pass it to `from_pretrained` as `quantization_config`. Users set only `recipe`. lowbit writes
    the other values to config.json and reads them from there.

    Args:
        recipe: The same as in `lowbit.quantize`, but not None: it is read before the model is.
        modules: The layout and activations of each quantized module, by name.
        errors: The error of each quantized weight, by module name.
        format_version: The version of the tensor formats.
        producer: The program that wrote the model. None: this version of lowbit.
        quant_method: Always "lowbit".
        hashes: Hashes of the config and of all tensors.

    Raises:
        UsageError: if the recipe is absent or unknown.
        InputError: if this lowbit cannot read the format version, config.json has unknown keys, or
            `modules` or `errors` is not a mapping.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe | Mapping[str, Any] | None = None,
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        errors: Mapping[str, Mapping[str, float] | WeightError] | None = None,
        format_version: int = VERSIONS[0],
        producer: str | None = None,
        quant_method: str = METHOD,
        hashes: Mapping[str, Any] | None = None,
    ) -> None:
        if recipe is None:
            raise UsageError(
                'LowbitConfig needs a recipe, such as "int4-head8-dynamic" for a model that'
                ' generates or "int8-all-dynamic" for any other'
            )
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
        """The config of a config.json. Raises InputError also if the recipe is absent, or if a
        later lowbit added a key."""
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
        """The oldest format version that supports all stored layouts."""
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
    """The entries of `modules` or `errors`. Raises InputError if `stored` is not a mapping."""
    if not isinstance(stored or {}, Mapping):
        raise InputError(f"{key} of quantization_config is not a mapping")
    for name, entry in (stored or {}).items():
        if not isinstance(entry, Mapping | WeightError):
            raise InputError(f"{key} of quantization_config: {name} is {entry!r}, not a mapping")
        yield name, entry


def _version(entry: Mapping[str, Any]) -> int:
    """The oldest format version that supports an entry of `modules`: the first version for a tied
    module and for an entry that cannot be read."""
    try:
        return layout_from_dict(entry).version
    except LowbitError:
        return VERSIONS[0]
