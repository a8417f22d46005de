"""The pipeline that fits a folder."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.checkpoint.read import find
from lowbit.errors import UsageError, check_choice
from lowbit.pipelines.classification import Classifier, classifies
from lowbit.pipelines.embedding import Embedder
from lowbit.pipelines.generation import Generation
from lowbit.pipelines.pipeline import Pipeline
from lowbit.pipelines.sentence_modules import read_modules
from lowbit.pipelines.tagging import Tagger, tags
from lowbit.pipelines.translation import Translation

PIPELINES: dict[str, Callable[..., Pipeline]] = {
    each.kind: each for each in (Embedder, Classifier, Tagger, Translation, Generation)
}


def open_pipeline(model: str | Path, kind: str | None = None, **options: Any) -> Pipeline:
    """The pipeline of a folder or hub id; `kind` is by default what the model is made for.

    options: of the pipeline; those that are None are left out.

    Raises UsageError for an unknown kind, a model of another kind, and options that the kind does
    not have; InputError for a model that is not complete.
    """
    if kind is not None:
        check_choice("task", kind, PIPELINES)
    folder = find(model)
    loaded, tokenizer = load_model(folder), load_tokenizer(folder)
    kind = kind or kind_of(loaded, folder)
    given = {name: value for name, value in options.items() if value is not None}
    _check(kind, given)
    if kind == Embedder.kind:
        given["modules"] = read_modules(folder)
    return PIPELINES[kind](loaded, tokenizer, **given)


def kind_of(model: PreTrainedModel, folder: Path) -> str:
    """What a model is made for: embedding if sentence-transformers wrote it or it has no head."""
    if (folder / "modules.json").is_file():
        return Embedder.kind
    if classifies(model):
        return Classifier.kind
    if tags(model):
        return Tagger.kind
    if model.can_generate():
        return Translation.kind if model.config.is_encoder_decoder else Generation.kind
    return Embedder.kind


def options_of(kind: str) -> list[str]:
    """What a pipeline can be told beside its model, its tokenizer and what its folder says."""
    return [
        name
        for name, each in signature(PIPELINES[kind]).parameters.items()
        if each.default is not each.empty and name != "modules"
    ]


def _check(kind: str, options: Mapping[str, Any]) -> None:
    known = options_of(kind)
    if unknown := [name for name in options if name not in known]:
        option = unknown[0].replace("_", "-")
        raise UsageError(f"--{option} is not an option of {kind}")
