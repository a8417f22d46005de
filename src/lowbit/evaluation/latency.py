"""Time a model and its reference in the same rounds.

Both alternate within every round, so that other load on the machine slows both. The first round is
a warm-up and does not count. A time is the median over rounds; its spread is the interquartile
range.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from lowbit.errors import UsageError
from lowbit.evaluation.study import Timing
from lowbit.nn.eval_mode import evaluating, positions
from lowbit.progress import progress_bar

ROUNDS = 7


@dataclass(frozen=True)
class Shape:
    """A batch of sequences with `length` tokens. new_tokens: to generate after them; 0 for one
    forward pass."""

    batch: int
    length: int
    new_tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "8x128" or "1x32+64": batch × length, and new tokens. Raises UsageError."""
        grid, plus, new = text.partition("+")
        numbers = [*grid.split("x"), *([new] if plus else [])]
        if not all(n.isdecimal() for n in numbers) or len(grid.split("x")) != 2:
            raise UsageError(f"shape {text!r} is not like 8x128 or 1x32+64 (batch, length, new)")
        shape = cls(*map(int, numbers))
        if min(shape.batch, shape.length) < 1:
            raise UsageError(f"shape {text!r} has no token: batch and length must be at least 1")
        return shape

    def check(self, model: PreTrainedModel) -> None:
        """Raises UsageError if the model does not support the shape."""
        if self.new_tokens and not model.can_generate():
            raise UsageError(
                f"{type(model).__name__} does not generate text, so {self.new_tokens} new tokens"
                " cannot be timed"
            )
        most = positions(model)
        together = self.length + (0 if model.config.is_encoder_decoder else self.new_tokens)
        if most is not None and max(together, self.new_tokens) > most:
            raise UsageError(f"{together} tokens do not fit the model's {most} positions")


def default_shapes(model: PreTrainedModel) -> tuple[Shape, ...]:
    """One and eight sequences, forward; for models that generate, 32 new tokens after 32."""
    most = positions(model) or 128
    length = min(128, most)
    forward = (Shape(1, length), Shape(8, length))
    if not model.can_generate():
        return forward
    prompt = min(32, most // 2)
    generate = Shape(1, prompt, prompt)
    return (generate,) if model.config.is_encoder_decoder else (*forward, generate)


def time_beside(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    shapes: Sequence[Shape],
    rounds: int = ROUNDS,
    progress: bool = True,
) -> tuple[Timing, ...]:
    """Time `model`, and `reference` in the same rounds, on random tokens of each shape.

    Raises UsageError if the model does not support a shape.
    """
    for shape in shapes:
        shape.check(model)
    models = [model] if reference is None else [model, reference]
    timings = []
    total = len(shapes) * (rounds + 1)
    with progress_bar(total, "timing", "round", progress) as bar:
        for shape in shapes:
            runs = [_runner(m, shape) for m in models]
            seconds: list[list[float]] = [[] for _ in models]
            for number in range(rounds + 1):
                for run, times in zip(runs, seconds, strict=True):
                    start = time.perf_counter()
                    run()
                    if number:
                        times.append(time.perf_counter() - start)
                bar.update()
            timings.append(_timing(shape, seconds))
    return tuple(timings)


def _timing(shape: Shape, seconds: list[list[float]]) -> Timing:
    own, *others = seconds
    quartiles = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else [own[0]] * 3
    return Timing(
        batch=shape.batch,
        length=shape.length,
        new_tokens=shape.new_tokens,
        rounds=len(own),
        threads=torch.get_num_threads(),
        seconds=statistics.median(own),
        spread=quartiles[2] - quartiles[0],
        reference_seconds=statistics.median(others[0]) if others else None,
        faster_in=sum(a < b for a, b in zip(own, others[0], strict=True)) if others else None,
    )


def _runner(model: PreTrainedModel, shape: Shape) -> Callable[[], None]:
    """A function that runs one forward pass or generation, and waits for the GPU."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (shape.batch, shape.length), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids.to(model.device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    new = {"min_new_tokens": shape.new_tokens, "max_new_tokens": shape.new_tokens}
    options = {**new, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    if model.config.is_encoder_decoder and not shape.new_tokens:
        inputs["decoder_input_ids"] = inputs["input_ids"]

    def run() -> None:
        with evaluating(model):
            if shape.new_tokens:
                model.generate(**inputs, **options).tolist()
            else:
                model(**inputs)[0].flatten()[0].item()

    return run
