"""Models and tokenizers from a folder, float or quantized, in the class that config.json names."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.checkpoint import find, model_class, quiet_loader, read_config, weight_files
from lowbit.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "source.spm",
)


def load_model(folder: str | Path) -> PreTrainedModel:
    """The model of a folder or a hub id. Raises InputError for what is no complete model."""
    folder = find(str(folder))
    config = read_config(folder)
    weight_files(folder)
    with quiet_loader():
        model = model_class(config).from_pretrained(folder, local_files_only=True)
    return model.eval()


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase | None:
    """None where the folder has no file of a tokenizer. Raises InputError for a broken one."""
    folder = find(str(folder))
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the tokenizer of {folder} cannot be loaded: {reason}") from error
