"""What an adapter may ask of a quantized model. Each refusal is one sentence, before anything is
changed."""

from collections.abc import Iterator

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from lowbit.errors import UsageError
from lowbit.nn import STATIC, QuantEmbedding, QuantExperts, QuantLinear, QuantModule, is_quantized

# The others take a part of the weight out of the base.
INITIAL = (True, False, "gaussian", "orthogonal")


def check_config(model: nn.Module, config: LoraConfig) -> None:
    """Raises UsageError if `config` would change or train what is quantized in `model`."""
    if not is_quantized(model):
        return
    if config.init_lora_weights not in INITIAL:
        raise UsageError(
            f"init_lora_weights {config.init_lora_weights!r} changes the weights of the base, which"
            f" are quantized: use {', '.join(map(repr, INITIAL))}"
        )
    for name in _trained_beside(model, config):
        raise UsageError(
            f"{name} is quantized, so it cannot be trained itself (modules_to_save,"
            " trainable_token_indices): keep it float when the model is quantized (a rule"
            f' {{match: "{name}", keep: true}}), or make it one of target_modules'
        )
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            _check_target(name.replace(".base_layer", ""), module, config)
    if not config.inference_mode:
        for name, module in model.named_modules():
            if isinstance(module, QuantLinear) and module.activations in STATIC:
                raise UsageError(
                    f"{name} has {module.activations} activations, whose scale was found without"
                    " the adapter: train it on the same model with float or dynamic ones, and load"
                    " it here"
                )


def _check_target(name: str, module: QuantModule, config: LoraConfig) -> None:
    """Raises UsageError if `config` adapts a quantized weight as a parameter, or those of experts
    in any way."""
    experts = isinstance(module, QuantExperts)
    parameter = name if experts else f"{name}.weight"
    ends = [f".{parameter}".endswith(f".{end}") for end in config.target_parameters or ()]
    if experts and (any(ends) or check_target_module_exists(config, name)):
        raise UsageError(
            f"{name} holds the weights of experts, which take no adapters when quantized: adapt"
            " other layers, or keep experts float when the model is quantized (a rule"
            ' {match: "@experts", keep: true})'
        )
    if any(ends):
        raise UsageError(
            f"{parameter} is quantized, so it is not a parameter: name {name} in target_modules,"
            " not in target_parameters"
        )


def _trained_beside(model: nn.Module, config: LoraConfig) -> Iterator[str]:
    """Names of quantized modules that would be trained whole, or by single rows."""
    # PEFT compares ends of names.
    whole = tuple(config.modules_to_save or ())
    tokens = config.trainable_token_indices
    rows = tuple(tokens) if isinstance(tokens, dict) else ()
    for name, module in model.named_modules():
        if name.endswith(whole + rows) and is_quantized(module):
            yield name
        if isinstance(tokens, list) and isinstance(module, QuantEmbedding):
            yield name
