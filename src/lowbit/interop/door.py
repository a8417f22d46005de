"""What a door is: how one format of another project is read, written, or both.

in    PATH -> Source: config, quantized weights, float tensors, all unread   (taking_over.py)
out   StoredModel (stored_model.py) -> files                                 (handing_over.py)
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
    """A weight [out, in] that lowbit can hold exactly as it is: its codes are read when asked for.

    layout: how lowbit stores it; that of the tensor which `file.read()` gives.
    activations: what the module does to its inputs, "float" or "dynamic".
    """

    file: QuantizedInFile
    layout: AffineLayout | ExpertsLayout
    activations: str = "float"


@dataclass(frozen=True)
class Source:
    """What a foreign checkpoint holds; no large tensor of it is read yet.

    checkpoint: its folder, files, and the config of the float model that it was made from.
    weights: quantized weights by the names that float ones have in such a checkpoint
    ("model.layers.0.mlp.up_proj.weight"). floats: everything else, as `open_tensors` has it, with
    the decoded weights of `unheld`: those that lowbit cannot hold as they are, and why.
    told: what it is and who wrote it, in a few words; for people.
    companions: writes the tokenizer and whatever else travels beside the weights into a folder.
    """

    checkpoint: Checkpoint
    weights: Mapping[str, ForeignWeight]
    floats: Mapping[str, Any]
    told: str
    companions: Callable[[Path], None]
    unheld: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """The way in. recognizes: whether a file or folder is of this format; only a config or a few
    bytes are read. open: a context that gives its Source; with `decoding`, weights that lowbit
    cannot hold are decoded to floats, without it they raise InputError."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path, bool], AbstractContextManager[Source]]


@dataclass(frozen=True)
class Writer:
    """The way out. check: raises UsageError for a model that the format cannot hold, before any
    work, with the nearest recipe that it can. write: into a new folder, or a new file if
    `into_file`; returns sentences for people.

    Both are given the TYPE of `--to NAME:TYPE`, or None. weights: a pattern of the files that are
    counted as weights. layouts: other ways to lay a folder out, by name.
    """

    check: Callable[[StoredModel, str | None], None]
    write: Callable[[StoredModel, str | None, Path], tuple[str, ...]]
    into_file: bool = False
    weights: str = "*.safetensors"
    layouts: "Mapping[str, Writer]" = field(default_factory=dict)


@dataclass(frozen=True)
class Door:
    """One format. Either way may be missing."""

    reader: Reader | None = None
    writer: Writer | None = None
