"""Language modelling: every token of a text from the tokens before it, in blocks."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowbit.data import text
from lowbit.data.tokens import token_ids
from lowbit.errors import InputError
from lowbit.evaluation.tasks.perplexity import Perplexity
from lowbit.nn.eval_mode import positions
from lowbit.training.lesson import Example, Lesson, Material, folder_of, load_with_head

SPLITS = ("train", "valid")


def teach(material: Material) -> Lesson:
    """data: a folder with train.txt and valid.txt. Raises UsageError, InputError."""
    data = folder_of(material, "language", "train.txt and valid.txt")
    train, valid = (Path(data) / f"{split}.txt" for split in SPLITS)
    loaded = load_with_head(AutoModelForCausalLM, material, trained_for={"task": "language"})
    block = min(material.max_length, positions(loaded.model) or material.max_length)
    ids = token_ids(material.tokenizer, text.read(train).text)
    blocks = ids[: len(ids) // block * block].view(-1, block)
    if not len(blocks):
        raise InputError(f"{train} has {len(ids)} tokens, fewer than a block of {block}")
    if not valid.is_file():
        raise InputError(f"{data} has no valid.txt to score the model on")
    return Lesson(
        loaded.model,
        material.tokenizer,
        [{"input_ids": row} for row in blocks],
        _stacked,
        Perplexity(str(valid), context=block, samples=0),
        new=loaded.new,
    )


def _stacked(examples: list[Example]) -> dict[str, Tensor]:
    ids = torch.stack([example["input_ids"] for example in examples])
    return {"input_ids": ids, "labels": ids}
