"""What is learned from: a model for the task, its training examples, and how it is scored."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.checkpoint.claims import describing
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import find, open_checkpoint, read_config
from lowbit.data.glue_tasks import find_task, plain_label
from lowbit.errors import InputError, UsageError, check_at_least
from lowbit.evaluation.task import TRAINED_FOR, Task
from lowbit.progress import without_load_reports
from lowbit.training.architecture import Architecture

# As configurations of transformers name them.
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
DROPOUT = (
    "hidden_dropout_prob",
    "dropout",
    "dropout_rate",
    "activation_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "classifier_dropout",
    "seq_classif_dropout",
)
Example = dict[str, Any]  # one row of the model's inputs and labels, as lists of ids


@dataclass(frozen=True)
class Lesson:
    """Ready to be learned. `collate` makes a batch of examples; `score` is how the model is judged
    while it trains and in the end.

    best: the metric of which the highest makes the checkpoint that is kept; None: the last one is.
    new: the parameters that start at random. other_labels: those of the model's head, if it was
    trained for others than the task's. notes: what is to be said of the data. texts: what is
    written beside the outputs of `score`. test: how the model is judged once, in the end, and
    test_references, what it should write there. accuracy: whether each label is that of the logits
    at its place, so that training can log how many are the likeliest. targets: of each target
    among the inputs, the model's logits, which distillation compares.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    collate: Callable[[list[Example]], dict[str, Tensor]]
    score: Task
    best: str | None = None
    new: tuple[str, ...] = ()
    other_labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    test: Task | None = None
    test_references: Sequence[str] = ()
    accuracy: bool = False
    targets: Mapping[str, str] = field(default_factory=lambda: {"labels": "logits"})


@dataclass(frozen=True)
class Pairs:
    """Files of sentences and their translations, beside `Material.data`. valid, test: what the
    model is scored on while it trains, and in the end. target, valid_target, test_target: the
    second of two files of lines. Columns are those of a TSV, as `lowbit.data.parallel` counts."""

    target: str | None = None
    valid: str | None = None
    valid_target: str | None = None
    test: str | None = None
    test_target: str | None = None
    source_column: int = 1
    target_column: int | None = None


@dataclass(frozen=True)
class Material:
    """What a subject is taught from.

    model: a folder or hub id, or the sizes of a new one; data: a file or folder in the task's
    layout; subset: GLUE's task. max_length: tokens of an example; stride: by how many SQuAD's
    windows overlap, by default a third of that. attention_dropout: of attention probabilities;
    dropout: of what layers give, None for the model's own. Both are in the config that is saved.

    Raises UsageError for a dropout that is no share, and a length below 1.
    """

    model: str | Architecture
    tokenizer: PreTrainedTokenizerBase
    data: str | None
    subset: str | None = None
    max_length: int = 128
    stride: int | None = None
    attention_dropout: float = 0.0
    dropout: float | None = None
    pairs: Pairs = field(default_factory=Pairs)

    def __post_init__(self) -> None:
        for share in (self.attention_dropout, self.dropout):
            if share is not None and not 0 <= share < 1:
                raise UsageError(f"dropout {share} is outside 0 … 1")
        check_at_least("max_length", self.max_length, 1)

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer by a hash of what it does, files by their full path, GLUE's task by its
        plain name. Raises UsageError for a task that is not GLUE's."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["tokenizer"] = _fingerprint(self.tokenizer)
        found["model"] = _located(self.model) if isinstance(self.model, str) else asdict(self.model)
        found["data"] = self.data and _located(self.data)
        found["subset"] = self.subset and find_task(self.subset).name
        found["pairs"] = {
            name: _located(value) if isinstance(value, str) else value
            for name, value in asdict(self.pairs).items()
        }
        return found


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers that give the same ids; without the length of the last call."""
    rules: Any = None
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {
            name: rule for name, rule in rules.items() if name not in ("truncation", "padding")
        }
    said = json.dumps([rules, tokenizer.get_vocab()], sort_keys=True)
    return f"of {len(tokenizer)} tokens, {hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _located(name: str) -> str:
    """The full path, of what is a path."""
    return str(Path(name).resolve()) if Path(name).exists() else name


class Teacher(Protocol):
    def __call__(self, material: Material) -> Lesson: ...


@dataclass(frozen=True)
class Loaded:
    """new: the names of parameters that the checkpoint lacks, or has for another number of labels:
    these are initialized at random. other_labels: what the checkpoint's config calls its classes,
    if it has as many and names others."""

    model: PreTrainedModel
    new: tuple[str, ...]
    other_labels: tuple[str, ...] = ()


def load_with_head(
    head: Any,
    material: Material,
    labels: Sequence[str] = (),
    *,
    trained_for: Mapping[str, str],
    **changes: Any,
) -> Loaded:
    """The checkpoint in the class that `head`, one of transformers' Auto classes, has for it.

    labels: the names of its classes. If the checkpoint names the same ones, it keeps their numbers
    (config.label2id); else they are numbered as given. trained_for: the task, which the saved
    config names. changes: of the config. Raises InputError for what is no float checkpoint,
    UsageError if the architecture has no such head.
    """
    if isinstance(material.model, Architecture):
        raise UsageError("this task needs a model: only translation can make a new one")
    folder: Path = find(material.model)
    config = read_config(folder)
    checkpoint = open_checkpoint(folder, config)
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"{material.model} is quantized: only float models are trained")
    if type(config) not in head._model_mapping:
        raise UsageError(
            f"{type(config).__name__} has no model for {head.__name__.removeprefix('AutoModelFor')}"
        )
    others = _name_classes(config, labels) if labels else ()
    for name, value in {**changes, TRAINED_FOR: dict(trained_for)}.items():
        setattr(config, name, value)
    _set(config, ATTENTION_DROPOUT, material.attention_dropout)
    if material.dropout is not None:
        _set(config, DROPOUT, material.dropout)
    with reading(folder), describing(checkpoint.held, folder), without_load_reports():
        model: PreTrainedModel
        model, info = head.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for name, stored, expected in sorted(info["mismatched_keys"]):
        if name.startswith(f"{model.base_model_prefix}."):
            raise InputError(
                f"{name} has the shape {list(stored)} in the checkpoint,"
                f" {list(expected)} in the model that config.json describes"
            )
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return Loaded(model, tuple(sorted(new)), others)


def _name_classes(config: PreTrainedConfig, labels: Sequence[str]) -> tuple[str, ...]:
    """Gives the classes of a config these names; the names that it had, if it had as many others.
    Numbers are no names, and neither are LABEL_0, LABEL_1, …"""
    before = {plain_label(name): number for number, name in config.id2label.items()}
    known = not all(name.removeprefix("label_").isdigit() for name in before)
    alike = len(before) == len(labels)
    same = alike and before.keys() == {plain_label(label) for label in labels}
    numbers = [before[plain_label(label)] for label in labels] if same else range(len(labels))
    others = tuple(config.id2label.values()) if known and alike and not same else ()
    config.num_labels = len(labels)
    config.id2label = dict(sorted(zip(numbers, labels, strict=True)))
    config.label2id = dict(zip(labels, numbers, strict=True))
    return others


def _set(config: PreTrainedConfig, names: Sequence[str], share: float) -> None:
    for name in names:
        if hasattr(config, name):
            setattr(config, name, share)


def padded(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Pads a list of examples to its longest; labels have one length already."""

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        known = [{k: v for k, v in e.items() if k in tokenizer.model_input_names} for e in examples]
        batch = dict(tokenizer.pad(known, padding=True, return_tensors="pt"))
        for name in examples[0].keys() - batch.keys():
            batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    return collate


def folder_of(material: Material, task: str, files: str) -> str:
    """The data, a folder with these files. Raises UsageError if none is given, and for one file:
    the model would be scored on what it learned from."""
    if material.data is None:
        raise UsageError(f"task {task} needs --data: a folder with {files}")
    check_folder(material.data, files)
    return material.data


def check_folder(data: str, files: str) -> None:
    """Raises UsageError for one file, as `folder_of` does."""
    if Path(data).is_file():
        raise UsageError(
            f"{data} is one file; a model must not be scored on its training data: --data is a"
            f" folder with {files}"
        )
