"""PEFT's LoRA for models that lowbit quantized."""

from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, LoraModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn

from lowbit.nn import QuantLinear
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


def register() -> None:
    """Let PEFT inject LoRA with `QuantizedLoraModel`; again, it changes nothing."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = QuantizedLoraModel
