"""Save any quantized module to a folder, and load it into a float module of the same structure.

model.safetensors   every tensor of the module's state dict; a shared tensor once
config.json         `quantization_config`, the same as of transformers models (config.py), and
                    `dtypes`: the compute dtype of each packed module

For transformers models, `save_pretrained` and `from_pretrained` do the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit.checkpoint.atomic_write import check_output, staged, writing
from lowbit.checkpoint.documents import read_json, reading
from lowbit.checkpoint.foreign import METHOD
from lowbit.checkpoint.hashes import hashes, tensor_hash
from lowbit.checkpoint.hashes import verify as check_hashes
from lowbit.checkpoint.read import SINGLE, open_tensors, weight_files
from lowbit.conversion.attach import attach, config_of
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.experts import weight_at
from lowbit.conversion.foreign import check_plain
from lowbit.conversion.fuse import fuse
from lowbit.conversion.module_weights import WeightName, Weights
from lowbit.conversion.numbers import check_numbers
from lowbit.conversion.swap import put_packed, swap_tied
from lowbit.conversion.ties import untie
from lowbit.conversion.unchanged import unchanged_on_error
from lowbit.errors import InputError, UsageError, check_choice, naming
from lowbit.formats import layout_from_dict
from lowbit.nn import ACTIVATIONS, QuantModule, is_quantized

CONFIG = "config.json"


def save(module: nn.Module, folder: str | Path, overwrite: bool = False) -> None:
    """Save a quantized module to a folder.

    Args:
        module: A module that `lowbit.quantize` changed.
        folder: The folder to write.
        overwrite: Replace an existing model folder.

    Raises:
        UsageError: if the module is not quantized, or if `folder` exists, is not empty and
            `overwrite` is false.
        InputError: if the state dict holds values that are not tensors, or if `folder` cannot be
            written (full disk, missing permission).

    On error, `folder` is left unchanged.
    """
    config, output = config_of(module), Path(folder)
    check_output(output, overwrite, None)
    tensors = _state(module)
    dtypes = {
        name: str(packed.compute.dtype).removeprefix("torch.")
        for name, packed in module.named_modules()
        if isinstance(packed, QuantModule)
    }
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    config.hashes = None
    described = {
        "module": type(module).__name__,
        "quantization_config": config.to_dict(),
        "dtypes": dtypes,
    }
    config.hashes = hashes(described, {name: tensor_hash(t) for name, t in written.items()})
    described["quantization_config"] = config.to_dict()
    with staged(output) as new, writing(output):
        save_file(written, new / SINGLE)
        (new / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load(module: nn.Module, folder: str | Path, verify: bool = False) -> None:
    """Load a folder of `lowbit.save` into a float module, in place.

    The result computes the same as the saved module, bit for bit.

    Args:
        module: A float module with the structure of the saved one, with data (not on the meta
            device). Names, shapes and dtypes must agree.
        folder: A folder that `lowbit.save` wrote.
        verify: First compare all tensors with their hashes.

    Raises:
        UsageError: if the module is already quantized.
        InputError: if names, shapes, dtypes or hashes differ, or if `folder` cannot be read.

    On error, `module` is left unchanged.
    """
    source = Path(folder)
    if verify:
        check_hashes(source)
    if is_quantized(module):
        raise UsageError("the module is quantized already: build it in float, then load")
    check_plain(module)
    config, dtypes = _described(source)
    with open_tensors(weight_files(source)) as slices, reading(source / SINGLE):
        tensors = {name: opened[...] for name, opened in slices.items()}
    with unchanged_on_error(module):
        tied = {name for name, entry in config.modules.items() if "tied_to" in entry}
        ties = untie(module, set(map(WeightName, tied)))
        for name, entry in sorted(config.modules.items(), key=lambda item: item[0] in tied):
            _put_packed(module, name, entry, dtypes)
        _fill(module, tensors)
        check_numbers(module)
        attach(module, config, ties)
        fuse(module)


def _put_packed(
    module: nn.Module, name: str, entry: Mapping[str, Any], dtypes: Mapping[str, str]
) -> None:
    """Replace the float module `name` by a packed module without data, as `entry` describes it."""
    try:
        place, weights = weight_at(module, name)
    except AttributeError:
        raise InputError(
            f"{CONFIG} lists {name}, which {type(module).__name__} does not have"
        ) from None
    if not isinstance(weights, Weights):
        raise InputError(f"{CONFIG} lists {name}, but {weights}")
    activations = entry.get("activations", "float")
    check_choice(f"{name}: activations", activations, ACTIVATIONS, error=InputError)
    weight = place.of(module)
    found = str(weight.dtype).removeprefix("torch.")
    if dtypes.get(name) != found:
        raise InputError(
            f"{name} computes in {found} here and in {dtypes.get(name)} in the folder:"
            f" module.to(torch.{dtypes.get(name)}) first"
        )
    if "tied_to" in entry:
        if not isinstance(module.get_submodule(entry["tied_to"]), QuantModule):
            raise InputError(f"{CONFIG} ties {name} to {entry['tied_to']}, which is not stored")
        swap_tied(module, name, weights, entry["tied_to"], activations)
        return
    if weight.is_meta:
        raise InputError(f"{name} is on the meta device: build the module with data")
    with naming(name):
        put_packed(module, place, weights, layout_from_dict(dict(entry)), activations, weight)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the module's tensors by those with the same names. Raises InputError if names, shapes
    or dtypes differ."""
    state = _state(module)
    absent, unknown = state.keys() - tensors.keys(), tensors.keys() - state.keys()
    if absent or unknown:
        name, lacks = (min(absent), "the folder") if absent else (min(unknown), "the module")
        raise InputError(
            f"{lacks} lacks {name} ({len(absent)} tensors of the module are not in the folder,"
            f" {len(unknown)} of the folder are not in the module)"
        )
    for name, tensor in tensors.items():
        here = state[name]
        if here.shape != tensor.shape or here.dtype != tensor.dtype:
            raise InputError(
                f"{name} is {here.dtype} {list(here.shape)} in the module,"
                f" {tensor.dtype} {list(tensor.shape)} in the folder"
            )
    for name, tensor in tensors.items():
        path, _, own = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(owner, QuantModule) and own in owner.saved():
            setattr(owner, own, tensor.to(owner.compute.device))
        else:
            here = state[name]
            _replace(module, here, tensor.to(here.device))


def _replace(module: nn.Module, old: Tensor, values: Tensor) -> None:
    """Replace every parameter and buffer that is `old` by one tensor with these values."""
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is old:
                    held[name] = new  # type: ignore[assignment]


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor under its first name. Raises InputError if an entry is not a
    tensor."""
    seen: set[int] = set()
    found = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is not a tensor; only tensors are saved")
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


def _described(folder: Path) -> tuple[LowbitConfig, dict[str, str]]:
    """The quantization config and the dtypes in config.json. Raises InputError."""
    file = folder / CONFIG
    stored = read_json(file)
    try:
        quantization, dtypes = dict(stored["quantization_config"]), dict(stored["dtypes"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not what lowbit.save writes") from error
    if quantization.get("quant_method") != METHOD:
        raise InputError(f"{file} describes no module that lowbit quantized")
    with reading(file):
        return LowbitConfig.from_dict(quantization), dtypes
