"""The interface of a format of another project: a reader, a writer, or both.

in    PATH -> Source: config, quantized weights, float tensors, all unread   (import_checkpoint.py)
out   StoredModel (stored_model.py) -> files                                 (export_checkpoint.py)
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.checkpoint.read import Checkpoint
from lowbit.conversion.streamed_load import QuantizedInFile
from lowbit.formats import AffineLayout, ExpertsLayout
from lowbit.interop.stored_model import StoredModel


@dataclass(frozen=True)
class ForeignWeight:
    """A weight [out, in] that lowbit can represent exactly. `file.read()` reads its codes.

    layout: the layout of the tensor that `file.read()` returns.
    activations: of the module, "float" or "dynamic".
    """

    file: QuantizedInFile
    layout: AffineLayout | ExpertsLayout
    activations: str = "float"


@dataclass(frozen=True)
class Source:
    """The contents of a foreign checkpoint, with large tensors unread.

    checkpoint: its folder, files, and the config of the float model.
    weights: quantized weights by the names of the float checkpoint
    ("model.layers.0.mlp.up_proj.weight"). floats: all other tensors, in the form of `open_tensors`,
    including the decoded weights of `unheld`. unheld: weights that lowbit cannot represent exactly,
    and why. told: a short description of the format and the program that wrote it.
    companions: a function that writes the tokenizer and other small files into a folder.
    """

    checkpoint: Checkpoint
    weights: Mapping[str, ForeignWeight]
    floats: Mapping[str, Any]
    told: str
    companions: Callable[[Path], None]
    unheld: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Imports a format. recognizes: whether a file or folder has this format; reads only a config
    or a few bytes. open: a context with its Source. If `decoding`, weights that lowbit cannot
    represent are decoded to floats; else they raise InputError."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path, bool], AbstractContextManager[Source]]


@dataclass(frozen=True)
class Writer:
    """Exports to a format. check: raises UsageError before any work if the format does not support
    the model; the message names the nearest recipe. write: writes a new folder, or a new file if
    `into_file`; returns sentences for the user.

    Both get the TYPE of `--to NAME:TYPE`, or None; `write` also gets whether to show a progress
    bar. weights: a pattern of the files that count as weights. layouts: other layouts of the
    folder, by name. write_float: writes a float model, a folder, as a new file; None if the format
    is for quantized models only.
    """

    check: Callable[[StoredModel, str | None], None]
    write: Callable[[StoredModel, str | None, Path, bool], tuple[str, ...]]
    into_file: bool = False
    weights: str = "*.safetensors"
    layouts: "Mapping[str, Writer]" = field(default_factory=dict)
    write_float: Callable[[Path, Path, bool], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Door:
    """One format: its reader and writer. One of them may be missing."""

    reader: Reader | None = None
    writer: Writer | None = None
