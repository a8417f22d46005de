"""SQuAD 1.1: the span of a paragraph that answers a question (Devlin et al. 2019, section 4.2).

The answer is the span i ≤ j < i + max_answer_length of the greatest start_i + end_j over all
windows of a question (lowbit.data.squad_windows), of the n_best starts and ends of each, as the
characters of the context from the first of token i to the last of token j.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

from lowbit.data import squad, squad_windows
from lowbit.data.batches import by_length, check_batch_size, check_padding, longest
from lowbit.data.squad import Question, SquadData
from lowbit.data.squad_windows import QuestionWindows, usual_stride
from lowbit.errors import InputError, UsageError
from lowbit.evaluation import squad_score
from lowbit.evaluation.heads import check_head
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import Resampled, Subject, Task
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

SAMPLES = 5
NOTE = "share; SQuAD's own script shows it times 100"


@dataclass(frozen=True)
class Squad(Task):
    """data: as `lowbit.data.squad.read` takes it. stride: by default a third of max_length."""

    name = "squad"

    data: str
    split: str = "dev"
    max_length: int = 384
    stride: int | None = None
    max_answer_length: int = 30
    n_best: int = 20
    batch_size: int = 16

    @property
    def overlap(self) -> int:
        """Tokens that two windows share."""
        return usual_stride(self.max_length) if self.stride is None else self.stride

    @cached_property
    def items(self) -> SquadData:
        return squad.read(self.data, self.split)

    def check(self, subject: Subject) -> None:
        self.check_model(subject)
        self.items.check_answers()

    def check_model(self, subject: Subject) -> None:
        """Raises UsageError if the model does not support the task, even without answers."""
        check_head(
            subject.model, MODEL_FOR_QUESTION_ANSWERING_MAPPING, "SQuAD", "question-answering"
        )
        check_batch_size(self.batch_size)
        if min(self.max_answer_length, self.n_best) < 1 or self.overlap < 0:
            raise UsageError(
                f"max_answer_length {self.max_answer_length}, n_best {self.n_best} and stride"
                f" {self.overlap} must be at least 1, 1 and 0"
            )
        tokenizer = subject.needed_tokenizer()
        if not tokenizer.is_fast:
            raise UsageError(
                f"SQuAD needs a fast tokenizer, which knows its tokens' characters, not"
                f" {type(tokenizer).__name__}"
            )
        check_padding(tokenizer, self.batch_size)
        longest(subject.model, tokenizer, self.max_length)
        squad_windows.question_room(tokenizer, self.max_length, self.overlap)

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        questions = self.items.questions
        windows = squad_windows.split(
            subject.needed_tokenizer(), questions, self.max_length, self.overlap
        )
        predictions = self.answers(subject, questions, windows, progress)
        golden = [[answer.text for answer in question.answers] for question in questions]
        metrics = {}
        for name, score in (("f1", squad_score.f1), ("exact_match", squad_score.exact_match)):
            total = sum(
                squad_score.best(score, found, answers)
                for found, answers in zip(predictions, golden, strict=True)
            )
            metrics[name] = Metric(total / len(questions), "higher", NOTE)
        return Measurement(
            task=self.name,
            data=self.items.source,
            items=len(questions),
            unit="questions",
            settings={
                "max_length": self.max_length,
                "stride": self.overlap,
                "max_answer_length": self.max_answer_length,
                "n_best": self.n_best,
                "windows": len(windows.questions),
                "truncated": windows.cut_questions,
            },
            metrics=metrics,
            samples=tuple(
                Sample(question.question, found, answers[0])
                for question, found, answers in zip(
                    questions[:SAMPLES], predictions[:SAMPLES], golden[:SAMPLES], strict=True
                )
            ),
            predictions=tuple(predictions),
        )

    def resampled(self, found: Measurement) -> Resampled:
        each = np.array(
            [
                squad_score.best(squad_score.f1, str(told), [a.text for a in question.answers])
                for told, question in zip(found.predictions, self.items.questions, strict=True)
            ]
        )
        return lambda rows: float(each[rows].mean())

    def answers(
        self,
        subject: Subject,
        questions: Sequence[Question],
        windows: QuestionWindows,
        progress: bool = True,
    ) -> list[str]:
        """One answer per question; empty if no span is possible. Raises InputError if the model's
        output is not finite."""
        tokenizer, model = subject.needed_tokenizer(), subject.model
        best = [(float("-inf"), 0, 0)] * len(questions)
        with (
            evaluating(model),
            progress_bar(len(windows.spans), self.name, "window", progress) as bar,
        ):
            for batch in by_length([len(spans) for spans in windows.spans], self.batch_size):
                inputs = tokenizer.pad(
                    {name: [rows[row] for row in batch] for name, rows in windows.inputs.items()},
                    padding=len(batch) > 1,
                    return_tensors="pt",
                ).to(model.device)
                output = model(**inputs)
                logits = torch.stack([output.start_logits, output.end_logits], 1).float().cpu()
                if not torch.isfinite(logits).all():
                    raise InputError(
                        f"{subject.name} computes logits on {self.data} that are not finite"
                    )
                # Padding may be on either side.
                real = inputs["attention_mask"].bool().cpu()
                for row, scores, mask in zip(batch, logits, real, strict=True):
                    found = self.best_span(scores[:, mask], windows.spans[row])
                    owner = windows.questions[row]
                    if found is not None and found[0] > best[owner][0]:
                        best[owner] = found
                bar.update(len(batch))
        return [
            question.context[first:last]
            for question, (_, first, last) in zip(questions, best, strict=True)
        ]

    def best_span(
        self, logits: Float[Tensor, "2 tokens"], spans: list[tuple[int, int] | None]
    ) -> tuple[float, int, int] | None:
        """(score, first character, character after the last) of a window's best span."""
        starts, ends = (
            scores.topk(min(self.n_best, len(spans))).indices.tolist() for scores in logits
        )
        possible = (
            (float(logits[0, i] + logits[1, j]), first[0], last[1])
            for i in starts
            for j in ends
            if 0 <= j - i < self.max_answer_length
            and (first := spans[i]) is not None
            and (last := spans[j]) is not None
        )
        return max(possible, key=lambda span: span[0], default=None)
