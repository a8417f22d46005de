"""LoRA beside a quantized layer: y = layer(x) + s · B · A · x, with A [r, in] and B [out, r].

The layer stays packed and frozen. Gradients pass through it to what comes before: through float
activations as W, through int8 ones straight (kernels/linear/operator.py).
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Embedding, Linear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from lowbit.errors import InputError, UsageError
from lowbit.formats import QTensor
from lowbit.nn import QuantEmbedding, QuantLinear, QuantModule


class OnQuantized(LoraLayer):
    """What PEFT's layers ask of a quantized base, and how they are merged into it: once, with the
    quantized tensor that the model has made for it (merge.py)."""

    merged_weight: QTensor | None = None

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, QuantModule)
        embeds = isinstance(module, QuantEmbedding)
        return (module.rows, module.columns) if embeds else (module.columns, module.rows)

    def summed(self, names: list[str]) -> Tensor:
        """The float weight of the base and of the adapters `names` together, in float32, as the
        float module would store it. Raises UsageError for several adapters if one does more than
        add to the weight, InputError if the sum is not finite."""
        weight = self.get_base_layer().weight.numbers().float()
        if len(names) > 1 and any(name in self.lora_variant for name in names):
            raise UsageError(f"adapters are merged one by one if one is DoRA, not {names} together")
        for name in names:
            variant = self.lora_variant.get(name)
            if variant is None:
                weight = weight + self.get_delta_weight(name).float()
            else:
                weight = variant.merge_safe(self, name, weight)
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"adapter {', '.join(names)} holds numbers that are not finite")
        return weight

    def own_names(self, names: list[str] | None) -> list[str]:
        """Those of the adapters to be merged that this layer has."""
        here = (*self.lora_A, *self.lora_embedding_A)
        return [name for name in check_adapters_to_merge(self, names) if name in here]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Take over `merged_weight`. Raises UsageError where the model has made none."""
        names = self.own_names(adapter_names)
        if not names:
            return
        base = self.get_base_layer()
        if self.merged_weight is None:
            raise UsageError(
                "what is merged into a quantized weight is rounded with it, and cannot be taken out"
                " again: use merge_and_unload, which keeps no adapter"
            )
        base.hold(self.merged_weight)
        self.merged_weight = None
        for name in names:
            if self.lora_bias[name]:
                base.bias.data += self.lora_B[name].bias * self.scaling[name]
            self.merged_adapters.append(name)


class LoraQuantLinear(OnQuantized, Linear):
    """Beside a QuantLinear. DoRA works too; it decodes the weight at every call."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **options: Any
    ) -> None:
        base = _innermost(base_layer)
        assert isinstance(base, QuantLinear)
        # As PEFT does for the float modules, so that adapters are saved with what these expect.
        config.fan_in_fan_out = base.transposed
        super().__init__(
            base_layer, adapter_name, config, is_target_conv_1d_layer=base.transposed, **options
        )

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type | None]:
        return {(): None, ("use_dora",): DoraLinearVariant}


class LoraQuantEmbedding(OnQuantized, Embedding):
    """Beside a QuantEmbedding."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type | None]:
        return {(): None, ("use_dora",): DoraEmbeddingVariant}


# Quantized module -> what adapts it.
LAYERS: dict[type[QuantModule], type[OnQuantized]] = {
    QuantLinear: LoraQuantLinear,
    QuantEmbedding: LoraQuantEmbedding,
}


def _innermost(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def layer_for(module: nn.Module) -> type[OnQuantized] | None:
    """What adapts this module, which may have adapters; None if it is not a quantized one."""
    base = _innermost(module)
    return next((own for kind, own in LAYERS.items() if isinstance(base, kind)), None)
