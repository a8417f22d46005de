"""The model of bart-g2p-us: an encoder–decoder of 0.75 million parameters, from letters to sounds.

1,000 words with their pronunciations come with it to measure it on. What it is calibrated on are
other words, with what it says itself of them.
"""

import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.calibration.batches import decoder_inputs
from lowbit.checkpoint.load import load_model
from lowbit.decoding.translator import Translator
from lowbit.evaluation.tasks.translation import Translation

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.small_tokenizers import Characters  # noqa: E402  characters, as the model reads them

SPECIAL = 4  # ids before the first character
AT_ONCE = 32


class Pronunciation:
    def __init__(self, folder: Path) -> None:
        characters = json.loads((folder / "characters.json").read_text(encoding="utf-8"))
        self.model: PreTrainedModel = load_model(folder)
        self.letters = characters["graphemes"][SPECIAL:]
        self.sounds = characters["phonemes"][SPECIAL:]
        self.tokenizer = Characters(self.letters, self.sounds)
        self.words: dict[str, str] = json.loads((folder / "words.json").read_text(encoding="utf-8"))

    def task(self, place: Path) -> Translation:
        """Which words it says right; `place` is a folder for its data."""
        file = place / "words.tsv"
        pairs = (f"{word}\t{sound}\n" for word, sound in self.words.items())
        file.write_text("".join(pairs), encoding="utf-8")
        return Translation(str(file))

    def calibration(self, text: str, count: int) -> list[dict[str, Tensor]]:
        """`count` words of `text`, evenly spaced in the alphabet, none of which is measured on."""
        found = {word for word in re.findall(r"\w{3,}", text) if set(word) <= set(self.letters)}
        words = sorted(found - self.words.keys())
        words = [words[i * len(words) // count] for i in range(count)]
        said = Translator(self.model, self.tokenizer)(words, progress=False).outputs
        targets = Characters(self.sounds, self.sounds)
        batches = []
        for i in range(0, count, AT_ONCE):
            some = self.tokenizer(words[i : i + AT_ONCE], padding=True, return_tensors="pt")
            wanted = targets(said[i : i + AT_ONCE], padding=True, return_tensors="pt")
            ids, mask = wanted["input_ids"][:, 1:], wanted["attention_mask"][:, 1:]
            if ids.shape == some["input_ids"].shape:
                # Of masks of different shapes it is clear whose tokens they are about.
                ids, mask = (torch.nn.functional.pad(x, (0, 1)) for x in (ids, mask))
            batches.append(
                {name: some[name] for name in ("input_ids", "attention_mask")}
                | {
                    "decoder_input_ids": decoder_inputs(ids, self.model),
                    "decoder_attention_mask": mask,
                }
            )
        return batches
