"""The size of a model: every parameter and buffer, with scales; shared storage counts once.

*stored* bytes are those of a checkpoint, *resident* bytes those in memory. Bits per weight are
8 · stored bytes / parameters of the float model, per module and in total.
"""

from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowbit.checkpoint.read import weight_files
from lowbit.nn import QuantModule


@dataclass(frozen=True)
class ModuleSize:
    """The size of one module's own tensors. `parameters` counts those of the float module."""

    name: str
    module: str
    parameters: int
    stored_bytes: int
    float_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model, in bytes. Shared storage counts once.

    `parameters` counts those of the float model. `stored_bytes` is the size in a checkpoint.
    `float_bytes` is the size with every parameter in its compute dtype. `bits_per_weight` is
    8 · stored_bytes / parameters.

    Attributes:
        modules: The size of each module with tensors of its own.
        resident_bytes: Bytes in memory.
        disk_bytes: Bytes of the safetensors files; None without a folder.
    """

    modules: tuple[ModuleSize, ...]
    resident_bytes: int
    disk_bytes: int | None = None

    @property
    def parameters(self) -> int:
        return sum(m.parameters for m in self.modules)

    @property
    def stored_bytes(self) -> int:
        return sum(m.stored_bytes for m in self.modules)

    @property
    def float_bytes(self) -> int:
        return sum(m.float_bytes for m in self.modules)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / self.parameters if self.parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "stored_bytes": self.stored_bytes,
            "float_bytes": self.float_bytes,
            "resident_bytes": self.resident_bytes,
            "disk_bytes": self.disk_bytes,
            "modules": [asdict(m) | {"bits_per_weight": m.bits_per_weight} for m in self.modules],
        }


def footprint(model: nn.Module, folder: str | Path | None = None) -> Footprint:
    """Count the bytes of a model: codes, scales, zero points, padding, and float tensors.

    Args:
        model: Any module, float or quantized.
        folder: The checkpoint folder of the model, to count its files too. None: no files.

    Returns:
        Sizes in bytes, of each module and in total.

    Raises:
        InputError: The folder has no weights.
    """
    return Footprint(
        modules=tuple(_module_sizes(model)),
        resident_bytes=resident_bytes(model),
        disk_bytes=None if folder is None else disk_bytes(folder),
    )


def disk_bytes(folder: str | Path) -> int:
    """Bytes of the files with the model's weights, headers included. What training has learned
    beside them does not count. Raises InputError for a folder without weights."""
    return sum(file.stat().st_size for file in weight_files(Path(folder)))


def resident_bytes(model: nn.Module) -> int:
    """Bytes of the unique storages of all tensors of a model.

    Tensors in plain attributes of modules count too, for example a cached float copy.
    """
    storages: dict[tuple[str, int], int] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *_loose(module)):
            if value is not None and value.device.type != "meta":
                storage = value.untyped_storage()
                storages[(str(value.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def _loose(module: nn.Module) -> list[Tensor]:
    """Tensors in plain attributes, and in lists, tuples, dicts and dataclasses there."""
    found: list[Tensor] = []
    pending = [v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")]
    opened: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif is_dataclass(value) and id(value) not in opened:
            opened.add(id(value))
            # Not by attribute: some configs raise for a field that differs between layers.
            held = vars(value)
            pending += [held.get(field.name) for field in fields(value)]
        elif isinstance(value, dict):
            found += [v for v in value.values() if isinstance(v, Tensor)]
        elif isinstance(value, list | tuple):
            found += [v for v in value if isinstance(v, Tensor)]
    return found


def _module_sizes(model: nn.Module) -> list[ModuleSize]:
    seen: set[int] = set()
    sizes = []
    for name, module in model.named_modules():
        persistent = {
            key: tensor
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and key not in module._non_persistent_buffers_set
        }
        own = {key: tensor for key, tensor in persistent.items() if id(tensor) not in seen}
        seen.update(map(id, own.values()))
        if not own:
            continue
        stored = sum(tensor.nbytes for tensor in own.values())
        packed = tuple(module.saved()) if isinstance(module, QuantModule) else ()
        plain = [tensor for key, tensor in own.items() if key not in packed]
        parameters = sum(t.numel() for t in plain)
        as_float = sum(t.nbytes for t in plain)
        if packed:
            assert isinstance(module, QuantModule)
            weights = module.rows * module.columns if module.tied_to is None else 0
            parameters += weights
            as_float += weights * module.compute.element_size()
        sizes.append(ModuleSize(name, type(module).__name__, parameters, stored, as_float))
    return sizes
