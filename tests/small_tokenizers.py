"""Small real tokenizers: words that are separated by blanks, with offsets; and characters."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def words(*vocabulary, pad=True):
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]; ids count from 4 as they are given."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]" if pad else None,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


class Characters:
    """Only what `Translation` may use of a tokenizer. Ids 0 … 3: padding, start, end, unknown."""

    def __init__(self, sources, targets, start=(1,), end=(2,)):
        self.ids = {character: number for number, character in enumerate(sources, 4)}
        self.characters = dict(enumerate(targets, 4))
        self.start, self.end = list(start), list(end)

    def __call__(
        self, texts, *, padding, return_tensors, verbose, truncation=False, max_length=None
    ):
        assert padding is True and return_tensors == "pt" and not verbose and all(texts)
        rows = [[self.ids.get(character, 3) for character in text] for text in texts]
        if truncation:
            most = max_length - len(self.start) - len(self.end)
            rows = [row[:most] for row in rows]
        rows = [self.start + row + self.end for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}

    def batch_decode(self, rows, *, skip_special_tokens):
        assert skip_special_tokens
        return [
            "".join(self.characters[number] for number in row if number in self.characters)
            for row in rows.tolist()
        ]
