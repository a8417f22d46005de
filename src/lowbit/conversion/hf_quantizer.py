"""The transformers quantizer: `save_pretrained` and `from_pretrained` for quantized models.

config_registration.py registers it and its config (config.py) with transformers. It builds the
model of a quantized folder (skeleton.py), or quantizes a float checkpoint as it is loaded.
"""

import json
import re
from collections.abc import Set
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer
from transformers.quantizers.base import _assign_is_quantized

from lowbit.checkpoint.foreign import METHOD
from lowbit.checkpoint.guard import guard_patterns, guards
from lowbit.checkpoint.hashes import hashes, tensor_hash
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.expert_by_expert import Experts, expert_by_expert
from lowbit.conversion.experts import use_experts
from lowbit.conversion.fuse import fuse, unfuse
from lowbit.conversion.one_weight import put_quantized, put_tied, quantize_weight, tied_entry
from lowbit.conversion.plan import Quantize, TiedTo, check_static, make_plan
from lowbit.conversion.skeleton import align, build, check_loaded, fill_replaced, stored_buffers
from lowbit.conversion.stored_names import as_saved, keep_apart, lost, merged_with, renaming, takes
from lowbit.conversion.swap import restore
from lowbit.conversion.ties import TiedKeys, part_head, retie, untie
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError, LowbitError, UsageError
from lowbit.nn import QuantModule
from lowbit.nn.experts import FLOAT


def attach(model: PreTrainedModel, config: LowbitConfig, ties: tuple[TiedKeys, ...]) -> None:
    """Give a model that was quantized in place the state that `from_pretrained` gives.

    The caller's config object does not change, because other models may share it.
    """
    quantizer = LowbitQuantizer(config, pre_quantized=True)
    quantizer.ties = ties
    own_configs(model)
    use_experts(model)
    model.config.dtype = model.dtype
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = METHOD
    model.config.quantization_config = config
    align(model)
    set_methods(model)
    _assign_is_quantized(model)


def set_methods(model: PreTrainedModel) -> None:
    """Set methods that transformers disables for quantized models."""
    model.resize_token_embeddings = partial(resize_token_embeddings, model)
    model.float = partial(cast, model, torch.float32)
    model.half = partial(cast, model, torch.float16)


METHODS = ("resize_token_embeddings", "float", "half")


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Let the model compute in `dtype`, as `to` does. Stored tensors do not change."""
    return model.to(dtype)


def own_configs(model: nn.Module) -> None:
    """Give a model its own copies of the configs of its modules. At every call, modules read the
    kernels of attention and of experts from these configs."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        own = vars(module).get("config")
        if isinstance(own, PreTrainedConfig):
            module.config = deepcopy(own, copies)


def resize_token_embeddings(model: PreTrainedModel, *args: Any, **kwargs: Any) -> nn.Module:
    """Call transformers' method. Raises UsageError, with the model unchanged, if the embeddings are
    quantized."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [
        name for name, m in model.named_modules() if isinstance(m, QuantModule) and m in tables
    ]
    if names:
        raise UsageError(
            f"{names[0]} is quantized, so it cannot be resized: dequantize() the model,"
            " resize it, and quantize it again"
        )
    return type(model).resize_token_embeddings(model, *args, **kwargs)


class LowbitQuantizer(HfQuantizer):
    """Builds packed modules before loading, or fills them while a float checkpoint is loaded."""

    quantization_config: LowbitConfig

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized: bool
        self.ties: tuple[TiedKeys, ...] = ()
        self.stored_names: frozenset[str] = frozenset()
        # Weight name -> its decision, while a float checkpoint is loaded.
        self.pending: dict[str, Quantize] = {}
        # The names in `pending`, and all weights that a checkpoint stores in one tensor with them.
        self.claimed: frozenset[str] = frozenset()
        self.tied: tuple[TiedTo, ...] = ()
        self.failure: LowbitError | None = None

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        if self.pre_quantized:
            ignore(model, guard_patterns(model.base_model_prefix, self.quantization_config.modules))
            self.ties = build(model, self.quantization_config, dtype or model.dtype)
            self.stored_names = frozenset(name for name, _, _ in stored_buffers(model))
            return
        plan = make_plan(model, self.quantization_config.recipe)
        check_static(plan)
        self.pending = {str(d.weight): d for d in plan.owners}
        self.claimed = frozenset(self.pending) | merged_with(model, set(self.pending))
        self.tied = plan.tied
        self.ties = untie(model, {d.weight for d in self.tied})
        for d in self.tied:
            # Without a weight it is not missing and not initialized; a bias is loaded.
            module = model.get_submodule(d.weight.module)
            delattr(module, d.weight.parameter)
            vars(module)["_is_hf_initialized"] = module._parameters.get("bias") is None
        ignore(model, {f"^{re.escape(str(d.weight))}$" for d in self.tied})

    def quantize_loaded(self, model: PreTrainedModel, name: str, weight: Tensor | Experts) -> None:
        """Quantize the weight `name`, which has just been read, and put it into the model."""
        d = self.pending.pop(name)
        found = quantize_weight(d, weight)
        put_quantized(
            model, d, found.stored, weight.like if isinstance(weight, Experts) else weight
        )
        self.quantization_config.modules[d.name] = found.entry
        self.quantization_config.errors[d.name] = found.error

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        align(model)
        fill_replaced(model)
        set_methods(model)
        if self.pre_quantized:
            check_loaded(model)
            for module in model.modules():
                if isinstance(module, QuantModule):
                    module.follow_stored()
            fuse(model)
            return
        if self.failure is not None:
            raise self.failure
        if self.pending:
            raise InputError(f"the checkpoint lacks the weight {sorted(self.pending)[0]}")
        for d in self.tied:
            put_tied(model, d)
            self.quantization_config.modules[d.name] = tied_entry(d)
        self.tied = ()
        use_experts(model)
        fuse(model)
        # From here on the model counts as quantized.
        self.pre_quantized = True

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        return param_name in self.claimed

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeOnLoad(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """The conversions without those that convert a stored tensor, and without those that rename
        one in a way that saving cannot undo."""
        if not self.pre_quantized:
            return expert_by_expert(weight_conversions)
        weight_conversions = [
            entry
            for entry in weight_conversions
            if not (isinstance(entry, WeightConverter) and takes(entry, self.stored_names))
        ]
        saving = get_model_conversion_mapping(model, add_legacy=False)
        wrong = lost(model, saving, weight_conversions) & self.stored_names
        return [
            entry
            for entry in weight_conversions
            if self.stored_names.issuperset(map(renaming(entry), wrong))
        ]

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """None for stored tensors, which are never cast: a float16 scale stays float16."""
        if converter.target_patterns[0] in self.stored_names:
            return None
        return super().get_new_dtype(converter, param, dtype)

    def dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Restore the float model, in place, with decoded weights in `dtype`.

        By default, each weight has the compute dtype of its module.
        """
        with unchanged_on_error(model):
            unfuse(model)
            use_experts(model, FLOAT)
            restore(model, dtype)
            retie(model, self.ties)
            part_head(model)
        for own in (*METHODS, "_weight_conversions"):
            vars(model).pop(own, None)
        self.remove_quantization_config(model)
        if dtype is not None:
            model.to(dtype)
        model.config.dtype = model.dtype
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors that `save_pretrained` writes, under the model's names. Puts their hashes
        into the config, which `save_pretrained` writes after this call."""
        keep_apart(model)
        config = self.quantization_config
        state = model.state_dict() | guards(model.base_model_prefix, config.modules)
        written = {name: tensor_hash(tensor) for name, tensor in as_saved(model, state).items()}
        config.hashes = None
        described = json.loads(model.config.to_json_string())
        # save_pretrained will write these values.
        described |= {
            "dtype": str(model.dtype).removeprefix("torch."),
            "architectures": [type(model).__name__],
            "quantization_config": config.to_dict(),
        }
        config.hashes = hashes(json.loads(json.dumps(described)), written)
        return state, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Float parameters train (norms, biases, kept layers, adapters). Codes never change."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True also without adapters: transformers' Trainer reads it even if it only predicts."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def ignore(model: PreTrainedModel, patterns: Set[str]) -> None:
    """Let transformers accept tensors of these names in a checkpoint without a warning."""
    known = model._keys_to_ignore_on_load_unexpected or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *patterns}


class _QuantizeOnLoad(ConversionOps):
    """Quantize each planned weight when it is read; transformers sets the other tensors."""

    def __init__(self, quantizer: LowbitQuantizer) -> None:
        self.quantizer = quantizer

    def takes(self, name: str) -> bool:
        """Whether the experts of this name are to be read one by one."""
        decision = self.quantizer.pending.get(name)
        return decision is not None and decision.weights.kind == "experts"

    def convert(
        self,
        input_dict: dict[str, Any],
        model: Any = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        kept = {}
        for name, value in input_dict.items():
            if name not in self.quantizer.pending:
                kept[name] = value
                continue
            weight = value[0] if isinstance(value, list) else value
            try:
                self.quantizer.quantize_loaded(model, name, weight)
            except LowbitError as error:
                # The loader would hide the error in a report; raise it after loading.
                self.quantizer.failure = self.quantizer.failure or error
            if missing_keys is not None:
                missing_keys.discard(name)
        return kept
