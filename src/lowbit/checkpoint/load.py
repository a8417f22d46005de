"""Models and tokenizers from a folder, float or quantized, in the class that config.json names."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.checkpoint.claims import describing
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.read import find, model_class, open_checkpoint, read_config
from lowbit.errors import InputError, UsageError
from lowbit.progress import without_transformers_bars

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
    folder = find(folder)
    checkpoint = open_checkpoint(folder, read_config(folder))
    with reading(folder), describing(checkpoint.held, folder), without_transformers_bars():
        model, info = model_class(checkpoint.config).from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    # transformers alone would warn, and put random numbers there.
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{name} has the shape {list(stored)} in the checkpoint,"
            f" {list(expected)} in the model that config.json describes"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} of the {len(model.state_dict())} tensors of"
            f" {type(model).__name__}: {missing[0]}"
        )
    return model.eval()


def load_tokenizer(
    folder: str | Path, lower_case: bool | None = None
) -> PreTrainedTokenizerBase | None:
    """None where the folder has no file of a tokenizer. `lower_case`: whether text is put into
    lower case first; None for what the tokenizer does by itself.

    Raises InputError for a broken one, UsageError for one that cannot change its case.
    """
    folder = find(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    with reading(f"the tokenizer of {folder}"):
        options = {} if lower_case is None else {"do_lower_case": lower_case}
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        alike = tokenizer("A").input_ids == tokenizer("a").input_ids
    if lower_case is not None and alike != lower_case:
        wanted = "put text into lower case" if lower_case else "keep the case of text"
        raise UsageError(f"the tokenizer of {folder} does not support {wanted}")
    return tokenizer
