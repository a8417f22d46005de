"""The demo model on disk: a plain Hugging Face folder, named by a hash of all that made it.

    CACHE/demo-0123456789abcdef/
        config.json, model.safetensors, tokenizer.json, …    as transformers writes them
        held_out.txt    documents that were not trained on
        SHA256.json     file name → digest, so that a damaged folder is noticed

CACHE is LOWBIT_CACHE, else XDG_CACHE_HOME/lowbit, else ~/.cache/lowbit.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lowbit.checkpoint.atomic_write import staged, writing
from lowbit.checkpoint.documents import read_json
from lowbit.demo.corpus import documentation
from lowbit.demo.model import END_OF_TEXT, DemoSettings, new_model, new_tokenizer
from lowbit.demo.train import train
from lowbit.errors import InputError
from lowbit.progress import without_transformers_bars

HELD_OUT = "held_out.txt"
DIGESTS = "SHA256.json"


@dataclass(frozen=True)
class Trained:
    """The model, its tokenizer, and the token ids that it was not trained on."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    held_out: Tensor
    folder: Path
    from_cache: bool


def trained(settings: DemoSettings, retrain: bool = False, progress: bool = True) -> Trained:
    """The cached model, trained first where there is none, it is damaged, or `retrain` is set.

    Raises InputError where the cache cannot be written or this Python has no documentation.
    """
    folder = cache_folder() / f"demo-{fingerprint(settings)}"
    from_cache = not retrain and intact(folder)
    if not from_cache:
        # Staged before training, so that a folder that cannot be written costs no minute.
        with staged(folder) as unfinished:
            _make(unfinished, settings, progress)
    return _load(folder, from_cache)


def cache_folder() -> Path:
    if chosen := os.environ.get("LOWBIT_CACHE"):
        return Path(chosen)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared, "lowbit")
    return Path.home() / ".cache" / "lowbit"


def fingerprint(settings: DemoSettings) -> str:
    """The same for the same settings and interpreter, whose documentation is the text."""
    made_from = json.dumps([asdict(settings), sys.version])
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def intact(folder: Path) -> bool:
    """Whether the folder is complete and every file is as it was written."""
    try:
        written = read_json(folder / DIGESTS)
    except InputError:
        return False
    return written == digests(folder)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the list itself."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != DIGESTS
    }


def _make(folder: Path, settings: DemoSettings, progress: bool) -> None:
    corpus = documentation(settings.corpus_limit, progress)
    tokenizer = new_tokenizer(corpus.train, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = new_model(tokenizer, settings)
    train(model, _encode(tokenizer, END_OF_TEXT.join(corpus.train)), settings, progress)
    with without_transformers_bars(), writing(folder):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / HELD_OUT).write_text(END_OF_TEXT.join(corpus.held_out), encoding="utf-8")
    (folder / DIGESTS).write_text(json.dumps(digests(folder)), encoding="utf-8")


def _load(folder: Path, from_cache: bool) -> Trained:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with without_transformers_bars():
        model = GPT2LMHeadModel.from_pretrained(folder)
    held_out = (folder / HELD_OUT).read_text(encoding="utf-8")
    return Trained(model.eval(), tokenizer, _encode(tokenizer, held_out), folder, from_cache)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """Token ids [n] of a text longer than the model's context."""
    return tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
