"""What a module that was quantized in place remembers, so that it can be saved and restored.

A transformers model remembers it as `from_pretrained` would have left it, with `save_pretrained`
and `dequantize`. So does each transformers model inside another module; that module itself keeps
the whole.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lowbit.conversion import hf_quantizer as hub
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.experts import use_experts
from lowbit.conversion.fuse import unfuse
from lowbit.conversion.swap import restore
from lowbit.conversion.ties import TiedKeys, retie, transformers_inside
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import UsageError
from lowbit.nn import is_quantized
from lowbit.nn.experts import FLOAT

_PLACE = "_lowbit"  # the attribute that holds it


@dataclass(frozen=True)
class Attached:
    """How a module was quantized, and what transformers knew of its ties before."""

    config: LowbitConfig
    ties: tuple[TiedKeys, ...] = ()


def attach(module: nn.Module, config: LowbitConfig, ties: tuple[TiedKeys, ...]) -> None:
    """Let `module` remember how it was quantized."""
    if not isinstance(module, PreTrainedModel):
        hub.own_configs(module)
    for prefix, model in transformers_inside(module):
        if is_quantized(model):
            own = [replace(k, name=_inside(k.name, prefix)) for k in ties if _is_in(k.name, prefix)]
            hub.attach(model, _part(config, prefix), tuple(own))
    if not isinstance(module, PreTrainedModel):
        use_experts(module)
        vars(module)[_PLACE] = Attached(config, ties)


def config_of(module: nn.Module) -> LowbitConfig:
    """How `module` was quantized. Raises UsageError for one that `lowbit.quantize` did not have."""
    if isinstance(module, PreTrainedModel):
        config = getattr(module.config, "quantization_config", None)
    else:
        attached = vars(module).get(_PLACE)
        config = attached.config if isinstance(attached, Attached) else None
    if not isinstance(config, LowbitConfig):
        raise UsageError(
            f"this {type(module).__name__} was not quantized as a whole: use lowbit.quantize first"
        )
    return config


def restore_float(module: nn.Module) -> None:
    """Put float modules back into a quantized module, in place.

    Their weights are the decoded ones. `dequantize` of a transformers model does the same.

    Args:
        module: A module that `lowbit.quantize` or `lowbit.load` changed.

    Raises:
        UsageError: for any other module.

    On error, nothing has changed.
    """
    config_of(module)
    if isinstance(module, PreTrainedModel):
        module.dequantize()
        return
    attached: Attached = vars(module)[_PLACE]
    with unchanged_on_error(module):
        unfuse(module)
        use_experts(module, FLOAT)
        restore(module)
        retie(module, attached.ties)
        for _, model in transformers_inside(module):
            if getattr(model, "hf_quantizer", None) is not None:
                model.dequantize()
        del vars(module)[_PLACE]


def _part(config: LowbitConfig, prefix: str) -> LowbitConfig:
    """The same for what is under `prefix` alone."""
    if not prefix:
        return config
    modules: dict[str, Any] = {}
    for name, entry in config.modules.items():
        if name.startswith(prefix):
            tie = {"tied_to": entry["tied_to"].removeprefix(prefix)} if "tied_to" in entry else {}
            modules[name.removeprefix(prefix)] = entry | tie
    errors = {
        name.removeprefix(prefix): error
        for name, error in config.errors.items()
        if name.startswith(prefix)
    }
    return LowbitConfig(config.recipe, modules, errors)


def _is_in(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(prefix)


def _inside(name: str, prefix: str) -> str:
    """A module's name as seen from the module whose names have `prefix`."""
    return f"{name}.".removeprefix(prefix).removesuffix(".")
