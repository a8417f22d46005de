"""A Marian or BART folder as a CTranslate2 model, and its translations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lowbit.checkpoint.load import load_model, load_tokenizer


def convert(source: Path, folder: Path, kind: str) -> None:
    """Write the model of `source` into `folder`, with weights of `kind`: float32 or int8."""
    from ctranslate2.converters import transformers as converters

    model, tokenizer = load_model(source), load_tokenizer(source)
    # As the converter's BART has it: norms after each sublayer, and Marian has none before.
    model.config.normalize_before = False
    model.config.normalize_embedding = model.config.model_type == "bart"
    # Names that it insists on; the vocabulary has no such tokens, and none is ever written.
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    spec = converters.BartLoader()(model, tokenizer)
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    spec.save(str(folder))


def load(
    folder: Path, tokenizer_folder: Path, kind: str, beams: int, max_length: int
) -> Callable[[Sequence[str], int], tuple[str, ...]]:
    """From sentences and the size of a batch to their translations."""
    import ctranslate2

    tokenizer = load_tokenizer(tokenizer_folder)
    translator = ctranslate2.Translator(
        str(folder), device="cpu", compute_type=kind, intra_threads=torch.get_num_threads()
    )

    def translate(sentences: Sequence[str], batch: int) -> tuple[str, ...]:
        outputs = []
        order = sorted(range(len(sentences)), key=lambda index: -len(sentences[index]))
        for start in range(0, len(order), batch):
            ids = tokenizer(
                [sentences[index] for index in order[start : start + batch]],
                truncation=True,
                max_length=max_length,
            ).input_ids
            found = translator.translate_batch(
                [tokenizer.convert_ids_to_tokens(row) for row in ids],
                beam_size=beams,
                max_decoding_length=max_length - 1,
            )
            rows = [tokenizer.convert_tokens_to_ids(each.hypotheses[0]) for each in found]
            outputs += tokenizer.batch_decode(rows, skip_special_tokens=True)
        placed = dict(zip(order, outputs, strict=True))
        return tuple(placed[index] for index in range(len(sentences)))

    return translate
