"""The transformers quantizer: `save_pretrained` and `from_pretrained` for quantized models.

config.json holds `quantization_config`: quant_method "lowbit", a format version, the producer,
an explicit map module name -> layout and activations (or the module it is tied to), and the
recipe that made it, for people. `import lowbit` registers all this with transformers.
"""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping, Set
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    PrefixChange,
    WeightConverter,
    WeightTransform,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.quantizers.base import _assign_is_quantized
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.checkpoint.guard import guard_patterns, guards
from lowbit.conversion.fuse import fuse, unfuse
from lowbit.conversion.module_weights import WeightName, Weights, weights_of
from lowbit.conversion.one_weight import put_quantized, put_tied, quantize_weight, tied_entry
from lowbit.conversion.plan import Quantize, TiedTo, check_static, make_plan
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.conversion.swap import packed_like, replace_module, restore, swap_tied
from lowbit.conversion.ties import TiedKeys, retie, untie
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError, LowbitError, UsageError, naming
from lowbit.formats import layout_from_dict
from lowbit.formats.error import WeightError
from lowbit.formats.stacked import zero_points
from lowbit.nn import ACTIVATIONS, QuantEmbedding, QuantModule

METHOD = "lowbit"
FORMAT_VERSION = 1
# Bytes: where torch's own allocations lie.
ALIGNMENT = 64


class LowbitConfig(QuantizationConfigMixin):
    """`LowbitConfig("int4")` quantizes a float checkpoint as it is loaded.

    The form kept in config.json also has `modules`, the map of what is stored, and, for people,
    the `errors` of the stored weights. Raises UsageError
    for an unknown recipe, InputError for a format version that this lowbit cannot read.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe | Mapping[str, Any],
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        errors: Mapping[str, Mapping[str, float] | WeightError] | None = None,
        format_version: int = FORMAT_VERSION,
        producer: str | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise InputError(
                f"format version {format_version!r} cannot be read by this lowbit,"
                f" which knows version {FORMAT_VERSION}"
            )
        self.quant_method = quant_method
        self.format_version = format_version
        self.producer = producer or f"lowbit {importlib.metadata.version('lowbit')}"
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        self.modules = {name: dict(entry) for name, entry in (modules or {}).items()}
        self.errors = {
            name: error if isinstance(error, WeightError) else WeightError.from_dict(error)
            for name, error in (errors or {}).items()
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "producer": self.producer,
            "recipe": self.recipe.to_dict(),
            "modules": deepcopy(self.modules),
            "errors": {name: error.to_dict() for name, error in self.errors.items()},
        }


def attach(model: PreTrainedModel, config: LowbitConfig, ties: tuple[TiedKeys, ...]) -> None:
    """Make a model that was quantized in place what `from_pretrained` would have returned.

    The caller's config object, which other models may share, stays as it is.
    """
    quantizer = LowbitQuantizer(config, pre_quantized=True)
    quantizer.ties = ties
    copies: dict[int, Any] = {}
    for module in model.modules():
        # Blocks refer to it too, to read at every call how they attend.
        own = vars(module).get("config")
        if isinstance(own, PreTrainedConfig):
            module.config = deepcopy(own, copies)
    model.config.dtype = model.dtype
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = METHOD
    model.config.quantization_config = config
    align(model)
    model.resize_token_embeddings = partial(resize_token_embeddings, model)
    _assign_is_quantized(model)


def resize_token_embeddings(model: PreTrainedModel, *args: Any, **kwargs: Any) -> nn.Module:
    """transformers' own. Raises UsageError, and changes nothing, where the rows are quantized."""
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
        # Weight name -> what to do with it, while a float checkpoint is loaded.
        self.pending: dict[str, Quantize] = {}
        # Those, and what a checkpoint holds in one tensor with one of them.
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
        self.claimed = frozenset(self.pending) | _merged_with(model, set(self.pending))
        self.tied = plan.tied
        self.ties = untie(model, {d.weight for d in self.tied})
        for d in self.tied:
            # Without a weight it is not missing, and not initialized in vain; a bias is loaded.
            module = model.get_submodule(d.weight.module)
            delattr(module, d.weight.parameter)
            vars(module)["_is_hf_initialized"] = module._parameters.get("bias") is None
        ignore(model, {f"^{re.escape(str(d.weight))}$" for d in self.tied})

    def quantize_loaded(self, model: PreTrainedModel, name: str, weight: Tensor) -> None:
        """Quantize the weight `name`, which has just been read, and put it into the model."""
        d = self.pending.pop(name)
        found = quantize_weight(d, weight)
        put_quantized(model, d, found.stored, weight)
        self.quantization_config.modules[d.name] = found.entry
        self.quantization_config.errors[d.name] = found.error

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        align(model)
        fill_replaced(model)
        model.resize_token_embeddings = partial(resize_token_embeddings, model)
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
        fuse(model)
        # From here on it is a quantized model like any other.
        self.pre_quantized = True

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        return param_name in self.claimed

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeOnLoad(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """All but those that rename what is stored, as of a parameter that has become a module, so
        that saving would not take it back."""
        if not self.stored_names:
            return weight_conversions
        saving = get_model_conversion_mapping(model, add_legacy=False)
        lost = {n for n in self.stored_names if not _comes_back(saving, weight_conversions, n)}
        return [
            entry
            for entry in weight_conversions
            if self.stored_names.issuperset(map(_renaming(entry), lost))
        ]

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Stored tensors are never cast: a float16 scale is one whatever the model's dtype."""
        if converter.target_patterns[0] in self.stored_names:
            return None
        return super().get_new_dtype(converter, param, dtype)

    def dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """The float model again, in place, with the decoded weights, all of it in `dtype`.

        By default each weight has the dtype that its module computes in.
        """
        with unchanged_on_error(model):
            unfuse(model)
            restore(model, dtype)
            retie(model, self.ties)
        for own in ("resize_token_embeddings", "_weight_conversions"):
            vars(model).pop(own, None)
        self.remove_quantization_config(model)
        if dtype is not None:
            model.to(dtype)
        model.config.dtype = model.dtype
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes, under the names that the model has."""
        keep_apart(model)
        modules = self.quantization_config.modules
        return model.state_dict() | guards(model.base_model_prefix, modules), {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """What is float trains (norms, biases, kept layers, adapters); codes never change."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Without adapters too: transformers' Trainer asks before it only predicts."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def ignore(model: PreTrainedModel, patterns: Set[str]) -> None:
    """Tensors of these names are no surprise in a checkpoint."""
    known = model._keys_to_ignore_on_load_unexpected or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *patterns}


class _QuantizeOnLoad(ConversionOps):
    """Takes each float weight as it is read; the others are left for transformers to set."""

    def __init__(self, quantizer: LowbitQuantizer) -> None:
        self.quantizer = quantizer

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
                # The loader would bury it in a report; it is raised when loading is over.
                self.quantizer.failure = self.quantizer.failure or error
            if missing_keys is not None:
                missing_keys.discard(name)
        return kept


def _renaming(entry: WeightTransform) -> Callable[[str], str]:
    """How it renames a tensor when it is loaded; the entry itself does not notice."""
    trial = deepcopy(entry)
    return lambda name: trial.rename_source_key(name)[0]


def _comes_back(saving: list[WeightTransform], loading: list[WeightTransform], name: str) -> bool:
    """Whether a tensor that is renamed as it is saved has its name again when it is loaded."""
    renamed = name
    for entry in reversed(saving):
        if not isinstance(entry, WeightConverter):
            renamed = entry.reverse_transform().rename_source_key(renamed)[0]
    for entry in loading:
        if not isinstance(entry, WeightConverter):
            renamed = _renaming(entry)(renamed)
    return renamed == name


def _merged_with(model: PreTrainedModel, names: Set[str]) -> Set[str]:
    """The tensors of `model` that checkpoints hold in one with some of `names`, as Q, K and V."""
    reverse = [
        entry.reverse_transform()
        for entry in get_model_conversion_mapping(model)
        if isinstance(entry, WeightConverter)
    ]
    found: set[str] = set()
    for converter in reverse:
        merged: dict[str, set[str]] = {}
        for name in model.state_dict():
            stored, pattern = converter.rename_source_key(name)
            if pattern is not None:
                merged.setdefault(stored, set()).add(name)
        found |= {name for group in merged.values() if group & names for name in group}
    return found


def keep_apart(model: PreTrainedModel) -> None:
    """Let transformers save packed weights as they are: some models' checkpoints hold float weights
    of several modules in one tensor, into which it would merge codes too."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # then it would look for them itself, all but changes of a prefix
        conversions = [
            entry
            for entry in get_model_conversion_mapping(model, add_legacy=False)
            if not isinstance(entry, PrefixChange)
        ]
    packed = [name for name, module in model.named_modules() if isinstance(module, QuantModule)]
    model._weight_conversions = [
        entry
        for entry in conversions
        if not isinstance(entry, WeightConverter)
        or all(
            entry.reverse_transform().rename_source_key(f"{name}.weight")[1] is None
            for name in packed
        )
    ]


def build(model: PreTrainedModel, config: LowbitConfig, dtype: torch.dtype) -> tuple[TiedKeys, ...]:
    """Put packed modules without data wherever the map says. Raises InputError for a map that
    does not describe this model; returns what `retie` needs.

    The map is left with what this model has, under the names it has here: a model with another
    head lacks some of what is stored.
    """
    there = {name for name, _ in model.named_modules()}
    found = {name: resolve(there, model.base_model_prefix, name) for name in config.modules}
    same_class = type(model).__name__ in (model.config.architectures or ())
    absent = [name for name, module in found.items() if module is None]
    if absent and (same_class or len(absent) == len(found)):
        raise InputError(
            f"config.json lists {absent[0]}, which {type(model).__name__} does not have"
            f" ({len(absent)} of {len(found)} modules absent)"
        )
    float32 = [
        re.compile(rf"(^|\.){part}(\.|$)")
        for part, kept in model._get_dtype_plan(dtype).items()
        if kept == torch.float32
    ]
    tied_names = {found[name] for name, entry in config.modules.items() if "tied_to" in entry}
    ties = untie(model, {WeightName(name) for name in tied_names if name is not None})
    tied = {}
    for stored_name, name in found.items():
        if name is None:
            continue
        module = model.get_submodule(name)
        weights = weights_of(module)
        if isinstance(weights, str):
            raise InputError(f"config.json lists {stored_name}, but {weights}")
        entry = config.modules[stored_name]
        activations = entry.get("activations", "float")
        if activations not in ACTIVATIONS:
            raise InputError(f"{stored_name} has unknown activations {activations!r}")
        if "tied_to" in entry:
            tied[name] = (weights, entry["tied_to"], activations)
            continue
        exact = any(pattern.search(name) for pattern in float32)
        compute = torch.empty(0, dtype=torch.float32 if exact else dtype, device="meta")
        with naming(stored_name):
            packed = packed_like(module, weights, layout_from_dict(entry), activations, compute)
        replace_module(model, name, packed)
    for name, (weights, stored_source, activations) in tied.items():
        source = found.get(stored_source)
        if source is None or not isinstance(model.get_submodule(source), QuantModule):
            raise InputError(f"config.json ties {name} to {stored_source}, which is not stored")
        swap_tied(model, name, weights, source, activations)
    config.modules = {
        name: entry | ({"tied_to": found[entry["tied_to"]]} if "tied_to" in entry else {})
        for stored_name, entry in config.modules.items()
        if (name := found[stored_name]) is not None
    }
    config.errors = {
        name: error
        for stored_name, error in config.errors.items()
        if (name := found.get(stored_name)) is not None
    }
    return ties


def resolve(there: Set[str], base_model_prefix: str, name: str) -> str | None:
    """The name that a stored module has among the modules `there`: a model with a head may be
    opened as its base model and the other way round, which adds or takes the base model's prefix.
    """
    prefix = f"{base_model_prefix}."
    return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in there), None)


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, QuantModule, str]]:
    """(full name, module, its own name) of every stored tensor."""
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            for stored in module.saved():
                yield f"{name}.{stored}", module, stored


def align(model: PreTrainedModel) -> None:
    """Put float tensors where torch itself would. A mapped file has them anywhere, and there
    torch's convolutions and products differ in the last bit."""
    for tensor in (*model.parameters(), *model.buffers()):
        on_cpu = tensor.device.type == "cpu"
        if on_cpu and tensor.is_floating_point() and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def fill_replaced(model: PreTrainedModel) -> None:
    """Compute the buffers that no checkpoint holds of the float modules which packed ones stand in
    for: those were built without data, and transformers fills only what it sees in the model."""
    for name, module in model.named_modules():
        if not isinstance(module, QuantModule):
            continue
        buffers = module.replaced._buffers
        empty = {own: b for own, b in buffers.items() if b is not None and b.is_meta}
        for own, buffer in empty.items():
            buffers[own] = torch.empty_like(buffer, device=module.compute_dtype.device)
        if empty:
            _innermost(model, name)._init_weights(module.replaced)
        if isinstance(module, QuantEmbedding):
            # The scale of its rows may lie in such a buffer.
            weights = weights_of(module.replaced)
            assert isinstance(weights, Weights)
            module.embed_scale, module.rounds_scale = weights.embed_scale, weights.rounds_scale


def _innermost(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The transformers model that the module `name` belongs to: it knows how it is initialized."""
    while (name := name.rpartition(".")[0]) and not isinstance(
        model.get_submodule(name), PreTrainedModel
    ):
        pass
    inner = model.get_submodule(name)
    assert isinstance(inner, PreTrainedModel)
    return inner


def check_loaded(model: PreTrainedModel) -> None:
    """Raises InputError for a stored tensor that was not in the checkpoint or is of another kind,
    for a zero point that is no code, and for a missing bias.

    transformers alone would warn, and leave uninitialised memory.
    """
    for name, module in model.named_modules():
        bias = module._parameters.get("bias") if isinstance(module, QuantModule) else None
        if bias is not None and not getattr(bias, "_is_hf_initialized", False):
            raise InputError(f"the checkpoint lacks {name}.bias")
    for name, module, stored in stored_buffers(model):
        tensor = module._buffers[stored]
        shape, dtype = module.saved()[stored]
        if tensor is None or not getattr(tensor, "_is_hf_initialized", False):
            raise InputError(f"the checkpoint lacks the stored tensor {name}")
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InputError(
                f"stored tensor {name} is {tensor.dtype} {list(tensor.shape)},"
                f" expected {dtype} {list(shape)}"
            )
        # The kernels hold q − z in a byte.
        bits = zero_points(module.layout).get(stored)
        if bits is not None and tensor.numel():
            largest, codes = int(tensor.max()), 1 << bits
            if largest >= codes:
                raise InputError(
                    f"stored tensor {name} holds {largest}, outside the codes 0 … {codes - 1}"
                )


def register() -> None:
    """Make transformers know the method; a second import of lowbit changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(LowbitConfig)
        register_quantizer(METHOD)(LowbitQuantizer)
