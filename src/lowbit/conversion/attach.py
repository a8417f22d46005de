"""Attach its quantization config to a quantized module, so that it can be saved and restored.

A transformers model gets the state that `from_pretrained` gives, with `save_pretrained` and
`dequantize`. So does each transformers model inside another module. The outer module keeps the
config of all of them in an attribute.
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

_PLACE = "_lowbit"  # the attribute that holds an Attached


@dataclass(frozen=True)
class Attached:
    """The config of a quantized module, and the weight ties that transformers declared before."""

    config: LowbitConfig
    ties: tuple[TiedKeys, ...] = ()


def attach(module: nn.Module, config: LowbitConfig, ties: tuple[TiedKeys, ...]) -> None:
    """Attach the quantization config to `module`."""
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
    """The config of a quantized module. Raises UsageError if `lowbit.quantize` did not change it as
    a whole."""
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
    """Replace the quantized modules of a model by float modules with decoded weights, in place.

    The method `dequantize` of a quantized transformers model does the same.

    Args:
        module: A module that `lowbit.quantize` or `lowbit.load` changed.

    Raises:
        UsageError: if the module is not quantized as a whole.

    On error, the module is left unchanged.
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
    """The config of the submodule `prefix`."""
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
    """A module's name without the prefix of the module that contains it."""
    return f"{name}.".removeprefix(prefix).removesuffix(".")
