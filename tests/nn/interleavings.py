"""One or two threads compute a model while another one moves it, copies it, saves it, reads it, or
changes the number of threads, in an order that a seed gives:

    python -m tests.nn.interleavings --seed 0 --count 1000

What a thread computes must have the bits that it has alone. A process that ends is a fault too,
which whoever runs this sees.
"""

import argparse
import copy
import random
import tempfile
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import lowbit
from lowbit.errors import LowbitError
from tests.models import BERT, VOCABULARY

RECIPES = ("int8-all-dynamic", "int4-all", "bcq3-all-dynamic")
IDS = torch.arange(40).reshape(2, 20) % VOCABULARY


def made(recipe: str) -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**BERT)).eval()
    lowbit.quantize(model, recipe, progress=False)
    return model


def output(model: BertModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).last_hidden_state
    return found


def _copy(model: BertModel, expected: Tensor, _: random.Random) -> None:
    if not torch.equal(output(copy.deepcopy(model)), expected):
        raise AssertionError("a copy gives other numbers")


def _save(model: BertModel, *_: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)


def _read_a_weight(model: BertModel, *_: object) -> None:
    model.encoder.layer[0].output.dense.weight.sum()


def _use_all_planes(model: BertModel, *_: object) -> None:
    if model.config.quantization_config.recipe.name.startswith("bcq3"):
        lowbit.use_planes(model, 3)


DEEDS: tuple[Callable[[BertModel, Tensor, random.Random], object], ...] = (
    lambda model, *_: model.to("cpu"),
    lambda model, *_: model.to(torch.float32),
    lambda model, *_: model.eval(),
    lambda model, *_: model.state_dict(),
    lambda model, *_: model.load_state_dict(model.state_dict()),
    lambda model, expected, rng: torch.set_num_threads(rng.randint(1, 3)),
    _copy,
    _save,
    _read_a_weight,
    _use_all_planes,
)


def faults(recipe: str, seed: int, count: int) -> list[str]:
    """What went wrong in `count` interleavings of a model. What is refused is no fault."""
    model = made(recipe)
    expected, threads, found = output(model), torch.get_num_threads(), []
    for number in range(seed, seed + count):
        rng, done = random.Random(number), threading.Event()

        def compute(number: int = number, done: threading.Event = done) -> None:
            try:
                while not done.is_set():
                    if not torch.equal(output(model), expected):
                        raise AssertionError("a forward pass gives other numbers")
            except Exception as error:
                found.append(f"{recipe} {number}: {error!r}")

        workers = [threading.Thread(target=compute) for _ in range(rng.randint(1, 2))]
        for worker in workers:
            worker.start()
        for _ in range(rng.randint(1, 5)):
            try:
                rng.choice(DEEDS)(model, expected, rng)
            except LowbitError:
                pass
            except Exception as error:
                found.append(f"{recipe} {number}: {error!r}")
            time.sleep(rng.random() * 0.003)
        done.set()
        for worker in workers:
            worker.join()
    torch.set_num_threads(threads)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    found = []
    for recipe in RECIPES:
        here = faults(recipe, args.seed, args.count // len(RECIPES) + 1)
        print(f"{recipe}: {len(here)} faults", flush=True)
        found += here
    raise SystemExit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
