"""PEFT's LoRA for models that lowbit quantized."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn
from transformers import PreTrainedModel

from lowbit.nn import QuantLinear, QuantModule
from lowbit.peft.checks import check_config
from lowbit.peft.layers import layer_for
from lowbit.peft.merge import prepare

ALL = "all-linear"  # what PEFT calls every linear layer but the head


class QuantizedLoraModel(LoraModel):
    """PEFT's LoraModel, which adapts quantized layers as well, and merges adapters into them.

    `merge_and_unload` adds an adapter to the decoded weight and quantizes the sum again by the same
    scheme: what is smaller than its steps is lost. `merge_adapter`, which could not be undone, is
    refused with a UsageError. What cannot be trained is refused before anything changes.
    """

    def _check_new_adapter_config(self, config: LoraConfig) -> None:
        super()._check_new_adapter_config(config)
        check_config(self.model, config)

    def _prepare_adapter_config(
        self, peft_config: LoraConfig, model_config: dict[str, Any]
    ) -> LoraConfig:
        config = super()._prepare_adapter_config(peft_config, model_config)
        if config.target_modules == ALL:
            config = _maybe_include_all_linear_layers(config, self.model)
            config.target_modules |= _quantized_linear(self.model)
        return config

    @staticmethod
    def _create_new_module(
        lora_config: LoraConfig, adapter_name: str, target: nn.Module, **options: Any
    ) -> nn.Module:
        own = layer_for(target)
        if own is None:
            made: nn.Module = LoraModel._create_new_module(
                lora_config, adapter_name, target, **options
            )
            return made
        return own(target, adapter_name, config=lora_config, **options)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            prepare(self.model, adapter_names)
        with _tie_kept(self.model):
            unloaded: nn.Module = super()._unload_and_optionally_merge(
                merge, progressbar, safe_merge, adapter_names
            )
        return unloaded


def _quantized_linear(model: nn.Module) -> set[str]:
    """Names of the quantized linear layers that have no adapter yet, but for the head."""
    find_head = getattr(model, "get_output_embeddings", None)
    head = None if find_head is None else find_head()
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear) and module is not head and not name.startswith(inside)
    }


@contextmanager
def _tie_kept(model: nn.Module) -> Iterator[None]:
    """A context in which PEFT does not compare the weights of a quantized embedding and of the head
    that is tied to it. It compares addresses, but each access decodes the weight anew, so it would
    set the config to untied."""
    config: Any = getattr(model, "config", None)
    if not _is_head_tied(model) or not getattr(config, "tie_word_embeddings", False):
        yield
        return
    config.tie_word_embeddings = False  # then PEFT compares nothing
    try:
        yield
    finally:
        config.tie_word_embeddings = True


def _is_head_tied(model: nn.Module) -> bool:
    """Whether the head has the quantized weight of the embedding."""
    if not isinstance(model, PreTrainedModel):
        return False
    head = _base(model.get_output_embeddings())
    if not isinstance(head, QuantModule):  # some models without a head have no table either
        return False
    table = _base(model.get_input_embeddings())
    return isinstance(table, QuantModule) and table.owner is head.owner


def _base(module: Any) -> Any:
    """The module without its adapters."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def register() -> None:
    """Let PEFT inject LoRA with `QuantizedLoraModel`; again, it changes nothing."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = QuantizedLoraModel
