"""A language whose translation is its words backwards, and what learns it in seconds."""

import random

from lowbit.training.architecture import Architecture
from lowbit.training.lesson import Material
from lowbit.training.settings import Settings
from lowbit.training.subwords import train_tokenizer

WORDS = [a + b for a in "bdfgklmn" for b in ("a", "o")]


def pairs(count, seed, longest=6):
    chosen = random.Random(seed)
    for _ in range(count):
        words = chosen.choices(WORDS, k=chosen.randint(4, longest))
        yield " ".join(words), " ".join(reversed(words))


def write(folder, train=400, valid=40, longest=6):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", train), ("valid", valid))):
        lines = [f"{source}\t{target}\n" for source, target in pairs(count, seed, longest)]
        (folder / f"{split}.tsv").write_text("".join(lines))
    return folder


def tokenizer(max_length=16):
    texts = [source for source, _ in pairs(400, 0)]
    return train_tokenizer(texts, 256 + 2 + len(WORDS), max_length)


def material(folder, model=None):
    return Material(
        model or Architecture(layers=1, width=64, feed_forward=128, heads=4, dropout=0.0),
        tokenizer(),
        str(folder),
        max_length=16,
    )


QUICK = Settings(learning_rate=3e-3, max_steps=30, batch_size=16, seed=3, weight_decay=0.0)
