"""Every model class that transformers registers, with the model type of its configuration."""

from typing import NamedTuple

from transformers.models.auto import modeling_auto

# Looked at only for model types that no other mapping serves: a base model is inside each head.
BASE = ("MODEL_FOR_PRETRAINING_MAPPING_NAMES", "MODEL_MAPPING_NAMES")


class Registered(NamedTuple):
    """A model class by name, and the model type that it is named after."""

    model_class: str
    model_type: str
    task: str


def registered() -> list[Registered]:
    """Each class once, those of one model type beside each other."""
    found: dict[str, Registered] = {}
    served: set[str] = set()
    for mapping in sorted(vars(modeling_auto), key=lambda name: name in BASE):
        if not (mapping.startswith("MODEL_") and mapping.endswith("MAPPING_NAMES")):
            continue
        task = mapping.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES").lower()
        here = getattr(modeling_auto, mapping)
        for model_type, names in here.items():
            if mapping in BASE and model_type in served:
                continue
            for name in names if isinstance(names, (list, tuple)) else (names,):
                known = found.setdefault(name, Registered(name, model_type, task))
                if _kinship(name, model_type) > _kinship(name, known.model_type):
                    found[name] = known._replace(model_type=model_type)
        served |= set(here)
    return sorted(found.values(), key=lambda each: (each.model_type, each.model_class))


def _kinship(model_class: str, model_type: str) -> tuple[int, int]:
    """How much of a class's name its model type's configuration explains, and shortness."""
    stem = modeling_auto.CONFIG_MAPPING_NAMES.get(model_type, "?").removesuffix("Config")
    return len(stem) if model_class.startswith(stem) else 0, -len(model_type)
