"""Perplexity of a text, divergence from the reference, and samples of generated text."""

from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import ClassVar

from torch import Tensor

from lowbit.data import text
from lowbit.data.tokens import token_ids
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.divergence import divergence
from lowbit.evaluation.generation import generate_sample
from lowbit.evaluation.perplexity import perplexity
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import Subject, Task
from lowbit.evaluation.windows import Windows, check_causal, context_and_stride
from lowbit.nn.eval_mode import positions

PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Perplexity(Task):
    """A text file, a folder of them, a `datasets` id, or one `text` given as it is.

    context, stride: see windows.py. samples: the number of continuations of `new_tokens` tokens to
    sample with `seed`, from prompts spread over the text.
    """

    name: ClassVar[str] = "perplexity"

    data: str | None = None
    text: str | None = None
    context: int | None = None
    stride: int | None = None
    samples: int = 3
    new_tokens: int = 40
    seed: int = 0

    @cached_property
    def _text(self) -> str:
        if (self.data is None) == (self.text is None):
            raise UsageError("perplexity needs a text: give either data or text")
        return self.text if self.text is not None else text.read(str(self.data)).text

    def check(self, subject: Subject) -> None:
        context_and_stride(subject.model, self.context, self.stride)
        check_causal(subject.model)
        subject.needed_tokenizer()
        if not self._text.strip():
            raise InputError("the text to predict is empty")

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        ids = self._ids(subject)
        value = perplexity(subject.model, ids, self.context, self.stride, progress)
        return self._measurement(subject, ids, {"perplexity": Metric(value, "lower")})

    def measure_beside(
        self, subject: Subject, reference: Subject, before: Measurement, progress: bool = True
    ) -> Measurement:
        """Perplexity and divergence in one pass of both models."""
        ids = self._ids(subject)
        found = divergence(subject.model, reference.model, ids, self.context, self.stride, progress)
        metrics = {
            "perplexity": Metric(found.perplexity, "lower", low=found.low, high=found.high),
            "KL divergence": Metric(found.kl, "lower", "nats per token, from the reference"),
            "top-1 agreement": Metric(found.top1, "higher", "with the reference, share of tokens"),
        }
        return self._measurement(subject, ids, metrics)

    def _measurement(
        self, subject: Subject, ids: Tensor, metrics: dict[str, Metric]
    ) -> Measurement:
        windows = Windows(subject.model, ids, self.context, self.stride)
        # A damaged model gives NaN: there is nothing to sample from.
        damaged = isnan(metrics["perplexity"].value)
        prompts = [] if damaged else self._prompts(subject, ids)
        return Measurement(
            task=self.name,
            data=self.data or "one text",
            items=windows.predicted,
            unit="tokens",
            settings={"context": windows.context, "stride": windows.stride, "seed": self.seed},
            metrics=metrics,
            samples=tuple(self._sample(subject, prompt) for prompt in prompts),
        )

    def _ids(self, subject: Subject) -> Tensor:
        return token_ids(subject.needed_tokenizer(), self._text)

    def _prompts(self, subject: Subject, ids: Tensor) -> list[str]:
        """The first tokens of equal parts of the text, if the model has positions to continue."""
        most = positions(subject.model)
        if len(ids) < PROMPT_TOKENS or (most or PROMPT_TOKENS + 1) <= PROMPT_TOKENS:
            return []
        tokenizer = subject.needed_tokenizer()
        starts = range(0, len(ids) - PROMPT_TOKENS + 1, max(1, len(ids) // max(1, self.samples)))
        texts = [tokenizer.decode(ids[start : start + PROMPT_TOKENS]) for start in starts]
        return [text for text in texts if text.strip()][: self.samples]

    def _sample(self, subject: Subject, prompt: str) -> Sample:
        tokenizer = subject.needed_tokenizer()
        most = positions(subject.model)
        room = self.new_tokens if most is None else most - len(tokenizer(prompt).input_ids)
        new_tokens = min(self.new_tokens, room)
        written = generate_sample(subject.model, tokenizer, prompt, new_tokens, self.seed)
        return Sample(prompt, written)
