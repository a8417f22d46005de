"""The law: no recipe that is recommended, and none with affine codes, is slower than float32.

    python bench/law.py [--target avx2] [--seconds 420] [--write]

Every preset without a suffix for embeddings (they change no layer's speed), with float, dynamic and
static activations, and both defaults, on BERT and GPT-2 of the usual width and two layers, random.
A row is printed when it is measured: × torch's float32 of the same model, by tokens
read at once. A number below 1 is **bold**.
"""

import copy
import time
from functools import partial

import random_models as models
import targets
import torch
from machine import Page, described
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel
from turns import Budget, in_turns, ready

import lowbit
from lowbit.conversion.default_recipe import GENERATING, READING
from lowbit.conversion.recipe import PRESETS
from lowbit.inspect.environment import processor
from lowbit.schemes.named import NAMED

SHAPES = ((1, 1), (1, 16), (1, 128), (8, 128))
RECIPES = (
    READING.name,
    GENERATING.name,
    *(b + a for b in NAMED for a in ("-dynamic", "", "-static")),
)
VOCABULARY = 5_000


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(num_hidden_layers=2, vocab_size=VOCABULARY)).eval()


def gpt2() -> PreTrainedModel:
    config = models.gpt2()
    config.num_hidden_layers, config.vocab_size = 2, VOCABULARY
    return models.float_model(config)


MODELS = {"BERT": bert, "GPT-2": gpt2}


def forward(model: PreTrainedModel, ids: Tensor) -> object:
    return model(ids)


def quantized(model: PreTrainedModel, recipe: str) -> PreTrainedModel:
    model = copy.deepcopy(model)
    static = any(rule.is_static for rule in PRESETS[recipe].rules)
    ids = torch.randint(VOCABULARY, (2, 32)) if static else None
    lowbit.quantize(model, recipe, progress=False, calibration=ids)
    return model


def row(model: PreTrainedModel, plain: PreTrainedModel, budget: Budget) -> str:
    cells = []
    for shape in SHAPES:
        ids = torch.randint(VOCABULARY, shape)
        runs = {"float32": partial(forward, plain, ids), "own": partial(forward, model, ids)}
        taken = in_turns(runs, budget.share(), most=25)
        ratio = min(taken["float32"]) / min(taken["own"])
        cells.append(f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**")
    return " | ".join(cells)


def main() -> None:
    asked = targets.parser(__doc__)
    asked.add_argument("--threads", type=int, default=2)
    options = asked.parse_args()
    target = targets.enter(options.target)
    ready(options.threads)
    page = Page(targets.page("law", target) if options.write else None)
    columns = "".join(f" {batch} × {tokens} |" for batch, tokens in SHAPES)
    page.say(
        "# What is slower than float32",
        "",
        f"`python bench/law.py`, {time.strftime('%Y-%m-%d')}, target {target}. {described()} Times"
        " torch's float32 of the same model, both with torch's attention; the fastest pass of"
        " each, in turns. **Bold**: slower.",
        "",
        f"| processor | target | model | recipe |{columns}",
        "|---" * (4 + len(SHAPES)) + "|",
    )
    where = processor().partition(" (")[0]
    budget = Budget(options.seconds, len(MODELS) * len(RECIPES) * len(SHAPES))
    for name, make in MODELS.items():
        plain = make()
        for recipe in RECIPES:
            cells = row(quantized(plain, recipe), plain, budget)
            page.say(f"| {where} | {target} | {name} | {recipe} | {cells} |")


if __name__ == "__main__":
    main()
