"""Text that a model generates after given prompts, to compare with the text of other models."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lowbit.data import text
from lowbit.data.lines import split_lines
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.generation import generate_sample
from lowbit.evaluation.study import Measurement, Sample
from lowbit.evaluation.task import Subject, Task
from lowbit.progress import tracked


@dataclass(frozen=True)
class Generate(Task):
    """One `text` as the prompt, or `data`, a file with one prompt per line.

    The same seed for every prompt and model; `top_k` 1 is greedy.
    """

    name: ClassVar[str] = "generate"

    data: str | None = None
    text: str | None = None
    new_tokens: int = 40
    top_k: int = 30
    seed: int = 0

    @cached_property
    def _prompts(self) -> list[str]:
        if (self.data is None) == (self.text is None):
            raise UsageError("generate needs prompts: give either data or text")
        if self.text is not None:
            lines = [self.text]
        else:
            lines = split_lines(text.read(str(self.data)).text)
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            raise InputError(f"{self.data or 'the text'} holds no prompt")
        return prompts

    def check(self, subject: Subject) -> None:
        subject.needed_tokenizer()
        if not subject.model.can_generate():
            raise UsageError(f"{type(subject.model).__name__} does not generate text")
        assert self._prompts

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        tokenizer = subject.needed_tokenizer()
        samples = [
            Sample(
                prompt,
                generate_sample(
                    subject.model, tokenizer, prompt, self.new_tokens, self.seed, self.top_k
                ),
            )
            for prompt in tracked(self._prompts, "generating", "prompt", progress)
        ]
        return Measurement(
            task=self.name,
            data=self.data or "one prompt",
            items=len(samples),
            unit="prompts",
            settings={"new_tokens": self.new_tokens, "top_k": self.top_k, "seed": self.seed},
            metrics={},
            # For reading only: sampled texts diverge after the first different token, so no score.
            samples=tuple(samples),
        )
