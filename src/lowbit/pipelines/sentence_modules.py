"""What sentence-transformers wrote beside a model: how its hidden states become a vector.

modules.json                        the modules in order, each with its folder
1_Pooling/config.json               which pooling; names of today and of before 2025 are read
sentence_bert_config.json           the most tokens, and whether text is put into lower case
config_sentence_transformers.json   texts that are put before each text
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.checkpoint.documents import read_json
from lowbit.errors import InputError, check_choice
from lowbit.pipelines.pooling import POOLINGS

MODULES = "modules.json"
# Before 2025 each mode was a key of its own, after "pooling_mode_".
BEFORE = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
READ = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceModules:
    """poolings: their vectors are put behind each other. prompt: text before each text.
    max_length: most tokens, None if nothing says so."""

    poolings: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""


def read_modules(folder: Path) -> SentenceModules:
    """Those of a folder; the defaults if sentence-transformers did not write it.

    Raises InputError for modules that are not read, such as a dense layer after the pooling.
    """
    file = folder / MODULES
    if not file.is_file():
        return SentenceModules()
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise InputError(f"{file} is not a list of modules")
    found: dict[str, Path] = {}
    for each in modules:
        kind = str(each.get("type")).rpartition(".")[2]
        check_choice(f"{file}: module", kind, READ, error=InputError)
        found[kind] = _inside(folder, each.get("path", ""), file)
    if "Pooling" not in found:
        raise InputError(f"{file} has no pooling module, so a text has no single vector")
    text = _mapping(found.get("Transformer", folder) / "sentence_bert_config.json", missing=True)
    return SentenceModules(
        read_poolings(found["Pooling"] / "config.json"),
        "Normalize" in found,
        _length(text.get("max_seq_length"), folder),
        bool(text.get("do_lower_case", False)),
        _prompt(folder / "config_sentence_transformers.json"),
    )


def read_poolings(file: Path) -> tuple[str, ...]:
    """Those of the config.json of a pooling module. Raises InputError if there is none, or one that
    is not supported."""
    stored = _mapping(file)
    if not stored.get("include_prompt", True):
        raise InputError(f"{file} excludes the prompt from the pooling, which is not supported")
    named = stored.get("pooling_mode")
    if named is None:
        named = [mode for key, mode in BEFORE.items() if stored.get(f"pooling_mode_{key}")]
    poolings = (named,) if isinstance(named, str) else named
    if not isinstance(poolings, list | tuple) or not all(isinstance(p, str) for p in poolings):
        raise InputError(f"{file}: pooling_mode is {named!r}, not a text or a list of texts")
    for pooling in poolings or ("none",):
        check_choice(f"{file}: pooling", pooling, POOLINGS, error=InputError)
    return tuple(poolings)


def _prompt(file: Path) -> str:
    """The text before each text."""
    stored = _mapping(file, missing=True)
    prompts, name = stored.get("prompts") or {}, stored.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(
        isinstance(prompt, str | None) for prompt in prompts.values()
    ):
        raise InputError(f"{file}: prompts are not texts by name")
    if name is None:
        return ""
    if name not in list(prompts):
        raise InputError(f"{file}: default_prompt_name {name!r} is not a name of its prompts")
    return prompts[name] or ""


def _length(stored: Any, folder: Path) -> int | None:
    if stored is None or (type(stored) is int and stored > 0):
        return stored
    raise InputError(f"max_seq_length of {folder} must be a number of tokens, not {stored!r}")


def _inside(folder: Path, path: Any, file: Path) -> Path:
    """The folder of a module. A hostile file could name one elsewhere."""
    if not isinstance(path, str) or "\0" in path or Path(path).name != path:
        raise InputError(f"{file} names {path!r}, which is not a folder beside it")
    return folder / path


def _mapping(file: Path, missing: bool = False) -> Mapping[str, Any]:
    if missing and not file.is_file():
        return {}
    stored = read_json(file)
    if not isinstance(stored, dict):
        raise InputError(f"{file} is not a mapping")
    return stored
