"""Adapters from a folder, compared with the base before it is changed."""

import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME as STORED
from peft.utils import WEIGHTS_NAME as PICKLED
from peft.utils import load_peft_weights
from torch import Tensor, nn

from lowbit.checkpoint.documents import reading
from lowbit.conversion.module_weights import Weights, weights_of
from lowbit.errors import InputError
from lowbit.nn import QuantModule

PREFIX = "base_model.model."  # PEFT's, before the names that modules have in the base
# Parameter of an adapter -> which dimension of it is one of the weight [rows, columns], and which.
FITS = {
    "lora_A.weight": (1, 1),
    "lora_B.weight": (0, 0),
    "lora_embedding_A": (1, 0),
    "lora_embedding_B": (0, 1),
}


def load(
    base: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    is_trainable: bool = False,
    **options: Any,
) -> PeftModel:
    """`PeftModel.from_pretrained(base, folder, …)`, after `check_adapter`; the base is quantized or
    float. Raises InputError as that does; the base is then what it was."""
    check_adapter(base, folder)
    return PeftModel.from_pretrained(
        base, str(folder), adapter_name=adapter_name, is_trainable=is_trainable, **options
    )


def check_adapter(base: nn.Module, folder: str | Path) -> None:
    """Compare a saved LoRA adapter with the model that it is to change.

    Raises InputError for a folder without an adapter, for a damaged or a pickled one, and for one
    of another base, which changes a module that `base` does not have, or a weight of another shape.
    Warns if it was trained on a base of another name.
    """
    if (Path(folder) / PICKLED).is_file() and not (Path(folder) / STORED).is_file():
        raise InputError(f"{folder} holds a pickled adapter; only safetensors are read")
    with reading(folder, "read as an adapter of PEFT"):
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_peft_weights(str(folder), device="cpu")
    modules = dict(base.named_modules())
    for key, tensor in tensors.items():
        place, _, parameter = key.removeprefix(PREFIX).partition(".lora_")
        if parameter:
            _check_fits(base, modules, str(folder), place, f"lora_{parameter}", tensor)
    trained_on, name = config.base_model_name_or_path, getattr(base, "name_or_path", None)
    if trained_on and name and Path(str(trained_on)).name != Path(name).name:
        warnings.warn(
            f"the adapter in {folder} was trained on {trained_on}, and this base is {name}: their"
            " shapes agree, but only the same model, quantized or float, suits it",
            stacklevel=3,
        )


def _check_fits(
    base: nn.Module,
    modules: dict[str, nn.Module],
    folder: str,
    place: str,
    parameter: str,
    tensor: Tensor,
) -> None:
    module = modules.get(place)
    if module is None:
        raise InputError(
            f"the adapter in {folder} is one of another base: it changes {place}, which this"
            f" {type(base).__name__} does not have"
        )
    shape, fits = _shape(module), FITS.get(parameter)
    if shape is None or fits is None:
        return
    if tensor.dim() != 2:
        raise InputError(
            f"the adapter in {folder} is damaged: {parameter} of {place} has the shape"
            f" {list(tensor.shape)}, which is not a matrix"
        )
    dimension, of_weight = fits
    if tensor.shape[dimension] != shape[of_weight]:
        raise InputError(
            f"the adapter in {folder} is one of another base: {parameter} of {place} has the shape"
            f" {list(tensor.shape)}, and the weight there {list(shape)}"
        )


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """That of the weight [rows, columns]; None for a kind of module that has none we know."""
    if isinstance(module, QuantModule):
        return module.rows, module.columns
    weights = weights_of(module)
    return weights.shape if isinstance(weights, Weights) else None
