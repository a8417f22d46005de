"""Save finished stages, one file each, so that an interrupted run can continue.

A folder has run.json, which identifies the run (recipe, solver, weights, data), and a safetensors
file for each finished stage with its quantized weights and changed float parameters.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowbit.checkpoint.atomic_write import staged_file, writing
from lowbit.checkpoint.documents import check_regular, read_json
from lowbit.checkpoint.hashes import tensor_hash
from lowbit.checkpoint.work_folder import tidy
from lowbit.errors import InputError, UsageError
from lowbit.formats import QTensor, layout_from_dict


@dataclass
class Solved:
    """The result of a solver: quantized weights by module, changed float parameters by name, and
    remarks by kind, with their modules. tuned: the distance from the float model's predictions
    before and after fine-tuning, if there was any."""

    stored: dict[str, QTensor] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    tuned: tuple[float, float] | None = None

    def remark(self, kind: str, module: str) -> None:
        self.remarks.setdefault(kind, []).append(module)

    def add(self, other: "Solved") -> None:
        self.stored |= other.stored
        self.floats |= other.floats
        for kind, modules in other.remarks.items():
            self.remarks.setdefault(kind, []).extend(modules)

    def notes(self) -> tuple[str, ...]:
        """The remarks as sentences."""
        said = [
            f"{len(modules)} {'layer' if len(modules) == 1 else 'layers'} {kind}: {modules[0]}"
            + (", …" if len(modules) > 1 else "")
            for kind, modules in self.remarks.items()
        ]
        if self.tuned is not None:
            before, after = self.tuned
            said.append(
                f"tuned: predictions on the calibration data are {after:.3g} away from the float"
                f" model's, {before:.3g} before"
            )
        return tuple(said)


class Journal:
    """The folder `work`. Tensors are read to `device`. Raises UsageError if it belongs to another
    run."""

    def __init__(self, work: Path, run: Mapping[str, Any], device: torch.device) -> None:
        self.work, self.device = work, device
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{work} cannot be written: {error.strerror}") from error
        tidy(work)
        file = work / "run.json"
        if file.exists():
            try:
                before = read_json(file)
            except InputError:
                before = None
            before = before if isinstance(before, dict) else {}
            other = [key for key, value in run.items() if before.get(key) != value]
            if not other:
                return
            if self._used() or before.keys() != run.keys():
                raise UsageError(
                    f"{work} holds the unfinished work of a run with other {', '.join(other)}:"
                    " finish that run, or remove the folder"
                )
        elif any(work.iterdir()):
            raise UsageError(f"{work} is not empty and holds no unfinished work")
        with staged_file(file) as unfinished:
            unfinished.write_text(json.dumps(run), encoding="utf-8")

    def drop_if_unused(self) -> None:
        """Remove the folder if it has no finished stage."""
        if not self._used():
            shutil.rmtree(self.work, ignore_errors=True)

    def read(self, number: int) -> Solved | None:
        """The result of a stage, or None. Raises InputError if the file is damaged."""
        file = self._file(number)
        if not file.exists():
            return None
        try:
            check_regular(file)
            with safe_open(file, framework="pt", device=str(self.device)) as opened:
                about = json.loads(opened.metadata()["about"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if about.pop("hash") != _hash(tensors, about):
                raise ValueError("a tensor is not what was written")
            stored = {
                name: layout_from_dict(layout).assemble(
                    {t: tensors[f"{name}/{t}"] for t in layout_tensors}, width
                )
                for name, (layout, width, layout_tensors) in about["stored"].items()
            }
            floats = {name: tensors[name] for name in about["floats"]}
        except Exception as error:  # whatever a damaged file makes safetensors and JSON raise
            raise InputError(f"{file} is broken; remove {self.work} to start again") from error
        return Solved(stored, floats, about["remarks"])

    def write(self, number: int, solved: Solved) -> None:
        tensors = {
            f"{name}/{t}": x.contiguous()
            for name, q in solved.stored.items()
            for t, x in q.tensors().items()
        }
        about = {
            "stored": {
                name: (q.layout.to_dict(), q.shape[1], list(q.tensors()))
                for name, q in solved.stored.items()
            },
            "floats": list(solved.floats),
            "remarks": solved.remarks,
        }
        tensors |= {name: x.detach().contiguous() for name, x in solved.floats.items()}
        about["hash"] = _hash(tensors, about)
        file = self._file(number)
        with staged_file(file) as unfinished, writing(file):
            save_file(tensors, unfinished, {"about": json.dumps(about)})

    def _used(self) -> bool:
        """Whether the folder has other files than run.json."""
        return any(file.name != "run.json" for file in self.work.iterdir())

    def _file(self, number: int) -> Path:
        return self.work / f"{number:04}.safetensors"


def _hash(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """A hash of the contents of a stage's file."""
    found = {name: tensor_hash(tensor) for name, tensor in sorted(tensors.items())}
    return hashlib.sha256(json.dumps([found, about], sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """A hash of all values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tensor.dtype, list(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
